"""The trained models that are exported: configurations, folds and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_unifiedloss.results.plans import Plans
from nnunet_unifiedloss.results.trainings import (
    DEFAULT_FOLDS,
    DEFAULT_PLANS,
    Training,
    find_trainings,
    read_json,
)

REQUIRED = ("plans.json", "dataset.json")


@dataclass(frozen=True)
class Model:
    """A trained configuration, with the folds and checkpoints to export.

    Attributes:
        results: The folder that ``nnUNet_results`` names.
        dataset: Name of the data set.
        configuration: ``2d``, ``3d_fullres``, …
        plans: Identifier of the plans.
        trainer: Name of the trainer, as in the name of nnU-Net's folder.
        folds: ``0`` to ``4``, or ``all``.
        checkpoints: File names.
    """

    results: Path
    dataset: str
    configuration: str
    plans: str
    trainer: str
    folds: tuple[str, ...]
    checkpoints: tuple[str, ...]

    @property
    def name(self) -> str:
        """The model's folder below ``nnUNet_results``, which is also its place in the archive."""
        return f"{self.dataset}/{self._training('0').model}"

    @property
    def folder(self) -> Path:
        """The model's folder on disk."""
        return self.results / self.name

    def fold(self, fold: str) -> Path:
        """The folder of a fold."""
        return self._training(fold).folder(self.results)

    def read(self, name: str) -> Any:  # noqa: ANN401 (whatever the file holds)
        """One of the model's JSON files."""
        return read_json(self.folder / name)

    @property
    def previous_stage(self) -> str | None:
        """The configuration whose predictions this one needs, for the second stage of a cascade."""
        return Plans(self.folder, "plans").previous_stage(self.configuration)

    def _training(self, fold: str) -> Training:
        return Training(self.dataset, self.configuration, self.plans, self.trainer, fold)


def select_models(
    results: Path,
    dataset: str,
    configurations: Sequence[str],
    *,
    trainer: str,
    plans: str = DEFAULT_PLANS,
    folds: Sequence[str] = DEFAULT_FOLDS,
    checkpoints: Sequence[str] = ("checkpoint_final.pth",),
) -> list[Model]:
    """Find the models to export; the second stage of a cascade brings the first with it.

    Args:
        results: The folder that ``nnUNet_results`` names.
        dataset: Name of the data set.
        configurations: Names of the configurations.
        trainer: Name of the trainer.
        plans: Identifier of the plans.
        folds: Folds, each a number or ``all``.
        checkpoints: File names of the checkpoints to take from each fold.

    Returns:
        One model for each configuration, those of an earlier stage before those that need them.

    Raises:
        ValueError: Something is not there; the message names it, and what is there instead.
    """
    _check_names(trainer, plans, *configurations, *folds, *checkpoints)
    for name in checkpoints:
        if not name.endswith(".pth"):
            raise ValueError(f"-chk {name}: expected the name of a checkpoint, ending in .pth")
    taken, wanted = tuple(dict.fromkeys(folds)), tuple(dict.fromkeys(checkpoints))
    models: dict[str, Model] = {}

    def add(configuration: str, *later: str) -> None:
        if configuration in models:
            return
        model = Model(results, dataset, configuration, plans, trainer, taken, wanted)
        _check_files(model)
        stage = model.previous_stage
        if stage in (configuration, *later):
            raise ValueError(f"{model.folder / 'plans.json'}: {stage} is a stage before itself")
        if stage is not None:
            add(stage, configuration, *later)
        models[configuration] = model

    for configuration in configurations:
        add(configuration)
    return list(models.values())


def _check_names(*names: str) -> None:
    for name in names:
        if not name or "/" in name or "\\" in name or name.startswith("."):
            raise ValueError(f"{name!r}: expected a plain name, without a folder")


def _check_files(model: Model) -> None:
    if not model.folder.is_dir():
        there = find_trainings(model.results, model.dataset)
        names = sorted({f"-tr {t.trainer} -p {t.plans} -c {t.configuration}" for t in there})
        raise ValueError(
            f"{model.folder}: there is no such model; trained on {model.dataset}: "
            f"{'; '.join(names) or 'nothing'}"
        )
    for name in REQUIRED:
        if not (model.folder / name).is_file():
            raise ValueError(
                f"{model.folder / name} is missing, and nnU-Net cannot predict without it; "
                "remedy: copy it from the folder nnUNet_preprocessed of the data set"
            )
    present = sorted(path.name.removeprefix("fold_") for path in model.folder.glob("fold_*"))
    for fold in model.folds:
        if fold not in present:
            raise ValueError(
                f"{model.fold(fold)}: this fold is not trained; remedy: train it, or export those "
                f"that are: -f {' '.join(present)}"
            )
        for checkpoint in model.checkpoints:
            path = model.fold(fold) / checkpoint
            if not path.is_file():
                names = sorted(each.name for each in path.parent.glob("*.pth"))
                raise ValueError(
                    f"{path} is missing (there: {', '.join(names) or 'no checkpoint'}); remedy: "
                    "finish the training with nnUNetv2_train … --c, or choose one with -chk"
                )
