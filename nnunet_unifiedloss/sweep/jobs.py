"""The jobs of a sweep: nnU-Net's commands, their requirements and their results."""

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

# the folder of locks and logs, which nnU-Net does not take for a data set because of its name
RECORDS = "unifiedloss_sweep"


class Job(ABC):
    """A task for one of nnU-Net's commands."""

    requires: tuple[Job, ...]

    @property
    @abstractmethod
    def name(self) -> str:
        """The unique name of the job."""

    @property
    @abstractmethod
    def records(self) -> Path:
        """The folder of the job's attempts and their logs."""

    @property
    @abstractmethod
    def shared(self) -> Path | None:
        """The lock of files that other jobs write too; None if there are no such files."""

    @property
    @abstractmethod
    def plans(self) -> Plans:
        """The plans that the job uses."""

    @abstractmethod
    def is_done(self) -> bool:
        """Return True if the results are complete."""

    @abstractmethod
    def command(self) -> list[str]:
        """Return nnU-Net's command for what is missing now."""

    def is_planned(self) -> bool:
        """Return True if nnU-Net has planned the configuration: small images have fewer."""
        return True

    def is_saving(self) -> bool:
        """Return True if stopping the job now would leave half a checkpoint."""
        return False

    def tidy(self) -> None:  # noqa: B027 (most jobs have nothing to tidy)
        """Set files aside that nnU-Net could not read; only while the job does not run."""


@dataclass(frozen=True)
class Preparation(Job):
    """Plan and preprocess a data set.

    Attributes:
        dataset: Name of the data set.
        plans_identifier: ``nnUNetPlans``, …
        configurations: The configurations to preprocess.
        requires: No other jobs.
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
        if self.plans.exist:  # planning again would discard edits of the user
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
    """Train and validate one fold, or continue it.

    Attributes:
        training: The training.
        requires: The preparation of its data; for a cascade also the trainings of its first stage.
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
        # the first training of a data set writes its splits; others would read half a file
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
        """Return True if predictions for the next stage or of ``--npz`` are missing.

        The training may have run before the next stage was planned, or without ``--npz``.
        """
        stages = self.folder.parent / "predicted_next_stage"
        wanted = [(stages / stage).glob("*") for stage in self.next_stages]
        if "--npz" in self.flags:
            wanted.append((self.folder / "validation").glob("*.npz"))
        return any(self._validation_cases() - {path.stem for path in paths} for paths in wanted)

    def _validation_cases(self) -> set[str]:
        """Return the validation cases; empty if the splits are unknown."""
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
    """Return the configurations without those that share another one's data, as cascades do."""
    first: dict[Path, str] = {}
    for name in sorted(configurations, key=lambda name: plans.previous_stage(name) is not None):
        base = "3d_fullres" if name == "3d_cascade_fullres" and not plans.exist else name
        first.setdefault(plans.data_folder(name), base)
    return list(dict.fromkeys(first.values()))


def plans_of(dataset: str, identifier: str) -> Plans:
    """Return the plans of a data set."""
    return Plans(nnunet_folder("nnUNet_preprocessed") / dataset, identifier)


def _records_of(dataset: str) -> Path:
    """Return the folder for jobs that write into a data set's preprocessed folder."""
    return nnunet_folder("nnUNet_preprocessed") / RECORDS / dataset
