"""The jobs of a sweep: which of nnU-Net's commands, what they need first, whether they are done."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from nnunet_unifiedloss.results.plans import Plans, planner_of
from nnunet_unifiedloss.results.trainings import (
    DEFAULT_PLANS,
    Training,
    nnunet_folder,
    resume_flags,
    set_broken_checkpoints_aside,
    state,
    whole_and_broken_checkpoints,
)

# Locks and logs of the sweep, beside nnU-Net's data sets, which it recognises by their names.
RECORDS = "unifiedloss_sweep"


class Job(ABC):
    """Something to be done by one of nnU-Net's commands."""

    requires: tuple[Job, ...]

    @property
    @abstractmethod
    def name(self) -> str:
        """What people call it; no two jobs have the same."""

    @property
    @abstractmethod
    def records(self) -> Path:
        """The folder of its attempts and their logs."""

    @property
    @abstractmethod
    def shared(self) -> Path | None:
        """Where to wait while another job writes the same files; None where none can."""

    @property
    @abstractmethod
    def plans(self) -> Plans:
        """The plans that it uses."""

    @abstractmethod
    def is_done(self) -> bool:
        """Whether its results are complete."""

    @abstractmethod
    def command(self) -> list[str]:
        """nnU-Net's command, as it is to be typed now."""

    def is_planned(self) -> bool:
        """Whether nnU-Net has planned its configuration, which depends on the size of images."""
        return True

    def is_saving(self) -> bool:
        """Whether stopping it now would leave half a checkpoint."""
        return False

    def tidy(self) -> None:  # noqa: B027 (most jobs have nothing to tidy)
        """Put out of the way what nnU-Net would stumble over; only while nobody is at the job."""


@dataclass(frozen=True)
class Preparation(Job):
    """Plan and preprocess a data set.

    Attributes:
        dataset: Name of the data set.
        plans_identifier: ``nnUNetPlans``, …
        configurations: Those that have to be preprocessed.
        requires: Nothing.
    """

    dataset: str
    plans_identifier: str
    configurations: tuple[str, ...]
    requires: tuple[Job, ...] = ()

    @property
    @override
    def name(self) -> str:
        return f"prepare {self.dataset} {self.plans_identifier}"

    @property
    @override
    def records(self) -> Path:
        return _records_of(self.dataset) / f"prepare__{self.plans_identifier}"

    @property
    @override
    def shared(self) -> Path | None:
        return _records_of(self.dataset) / "writing"

    @property
    @override
    def plans(self) -> Plans:
        return plans_of(self.dataset, self.plans_identifier)

    @override
    def is_done(self) -> bool:
        return self.plans.exist and not self._missing()

    def _missing(self) -> list[str]:
        plans = self.plans
        planned = [name for name in self.configurations if name in plans.configurations]
        return [name for name in planned if not plans.is_preprocessed(name)]

    @override
    def command(self) -> list[str]:
        number = str(int(self.dataset[len("Dataset") :][:3]))
        processes = os.environ.get("nnUNet_def_n_proc")
        workers = ["-np", processes] if processes else []
        if self.plans.exist:  # planning again would replace what somebody has edited
            plans = (
                []
                if self.plans_identifier == DEFAULT_PLANS
                else ["-plans_name", self.plans_identifier]
            )
            missing = _one_per_folder(self.plans, self._missing())
            return ["nnUNetv2_preprocess", "-d", number, *plans, "-c", *missing, *workers]
        planner = planner_of(self.plans_identifier)
        options = [] if self.plans_identifier == DEFAULT_PLANS else ["-pl", str(planner)]
        options += ["-npfp", processes] if processes else []
        configurations = _one_per_folder(self.plans, list(self.configurations))
        command = ["nnUNetv2_plan_and_preprocess", "-d", number, "-c", *configurations]
        return [*command, *options, *workers, "--verify_dataset_integrity"]


@dataclass(frozen=True)
class TrainingJob(Job):
    """Train and validate one fold, or go on where that was interrupted.

    Attributes:
        training: Which one.
        requires: The preparation of its data; for a cascade also the trainings of the stage before.
        flags: Further flags of ``nnUNetv2_train``: ``("-device", "cpu", "--npz")``.
        next_stages: The cascades that need this training's predictions as input.
    """

    training: Training
    requires: tuple[Job, ...] = ()
    flags: tuple[str, ...] = ()
    next_stages: tuple[str, ...] = ()

    @property
    @override
    def name(self) -> str:
        return f"{self.training.dataset} {self.training.model} fold {self.training.fold}"

    @property
    def folder(self) -> Path:
        """The training's ``fold_X``."""
        return self.training.folder(nnunet_folder("nnUNet_results"))

    @property
    @override
    def records(self) -> Path:
        return self.training.folder(nnunet_folder("nnUNet_results") / RECORDS)

    @property
    @override
    def shared(self) -> Path | None:
        # The first training of a data set writes its splits; others would read half a file.
        split = self.training.fold == "all" or self.plans.folds() is not None
        return None if split else _records_of(self.training.dataset) / "writing"

    @property
    @override
    def plans(self) -> Plans:
        return plans_of(self.training.dataset, self.training.plans)

    @override
    def is_done(self) -> bool:
        return state(self.folder) == "finished" and not self._lacks_predictions()

    def _lacks_predictions(self) -> bool:
        """Whether a case lacks what a next stage or ``--npz`` asks for.

        The data of the next stage may not have been there, or nobody asked for ``.npz`` before.
        """
        stages = self.folder.parent / "predicted_next_stage"
        wanted = [(stages / stage).glob("*") for stage in self.next_stages]
        if "--npz" in self.flags:
            wanted.append((self.folder / "validation").glob("*.npz"))
        return any(self._validation_cases() - {path.stem for path in paths} for paths in wanted)

    def _validation_cases(self) -> set[str]:
        """The cases that it predicts at its end; none where the splits do not tell."""
        folds, fold = self.plans.folds() or [], self.training.fold
        if fold == "all":
            return set().union(*folds)
        return set(folds[int(fold)]) if fold.isdecimal() and int(fold) < len(folds) else set()

    @override
    def is_planned(self) -> bool:
        return self.training.configuration in self.plans.configurations

    @override
    def is_saving(self) -> bool:
        return bool(whole_and_broken_checkpoints(self.folder)[1])

    @override
    def tidy(self) -> None:
        set_broken_checkpoints_aside(self.folder)

    @override
    def command(self) -> list[str]:
        training, resuming = self.training, resume_flags(self.folder)
        if "--val" not in resuming and state(self.folder) == "finished":
            raise ValueError(
                f"{self.folder}: is trained, but has no predictions for the next stage or --npz, "
                "and no checkpoint_final.pth to make them; remedy: move the folder away to train "
                "it again"
            )
        command = ["nnUNetv2_train", training.dataset, training.configuration, training.fold]
        command += ["-tr", training.trainer]
        command += [] if training.plans == DEFAULT_PLANS else ["-p", training.plans]
        return [*command, *self.flags, *resuming]


def _one_per_folder(plans: Plans, configurations: list[str]) -> list[str]:
    """Configurations without those that share the data of another one, like a cascade."""
    first: dict[Path, str] = {}
    for name in sorted(configurations, key=lambda name: plans.previous_stage(name) is not None):
        base = "3d_fullres" if name == "3d_cascade_fullres" and not plans.exist else name
        first.setdefault(plans.data_folder(name), base)
    return list(dict.fromkeys(first.values()))


def plans_of(dataset: str, identifier: str) -> Plans:
    """The plans of a data set."""
    return Plans(nnunet_folder("nnUNet_preprocessed") / dataset, identifier)


def _records_of(dataset: str) -> Path:
    """The records of what is written into a data set's preprocessed folder."""
    return nnunet_folder("nnUNet_preprocessed") / RECORDS / dataset
