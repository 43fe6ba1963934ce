"""nnU-Net's trainings on disk, read without importing torch or nnU-Net."""

from __future__ import annotations

import functools
import json
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = [
    "DEFAULT_FOLDS",
    "DEFAULT_PLANS",
    "FOLDERS",
    "State",
    "Training",
    "dataset_name",
    "find_trainings",
    "nnunet_folder",
    "read_json",
    "read_summary",
    "resume_flags",
    "set_broken_checkpoints_aside",
    "state",
    "validation_dice",
    "whole_and_broken_checkpoints",
]

# defaults of nnU-Net's commands
DEFAULT_PLANS = "nnUNetPlans"
DEFAULT_FOLDS = ("0", "1", "2", "3", "4")

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
# sorted by preference, as nnU-Net's --c does
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")

# the mean Dice is at the beginning of nnU-Net's summary.json
_HEAD = 4096
_MEAN_DICE = re.compile(rb'^{\s+"foreground_mean": {[^{}]*?"Dice": ([\w.+-]+)')
_END = b"\n}"

State = Literal["finished", "interrupted", "absent"]


@dataclass(frozen=True, order=True)
class Training:
    """One training of nnU-Net.

    Attributes:
        dataset: Name of the data set, ``Dataset004_Hippocampus``.
        configuration: ``2d``, ``3d_fullres``, …
        plans: Identifier of the plans, ``nnUNetPlans``.
        trainer: Name of the trainer.
        fold: ``0`` to ``4``, or ``all``.

    Example:
        >>> training = Training("Dataset004_Hippocampus", "2d", "nnUNetPlans", "nnUNetTrainer", "0")
        >>> training.folder(Path("results")).as_posix()
        'results/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__2d/fold_0'
    """

    dataset: str
    configuration: str
    plans: str
    trainer: str
    fold: str

    @property
    def model(self) -> str:
        """The name of the folder with all folds of this model."""
        return f"{self.trainer}__{self.plans}__{self.configuration}"

    def folder(self, results: Path) -> Path:
        """Return the folder of this training below ``nnUNet_results``."""
        return results / self.dataset / self.model / f"fold_{self.fold}"


def nnunet_folder(variable: str) -> Path:
    """Return one of nnU-Net's three folders.

    Args:
        variable: ``nnUNet_raw``, ``nnUNet_preprocessed`` or ``nnUNet_results``.

    Raises:
        ValueError: The environment variable is not set, or does not name a folder.
    """
    value = os.environ.get(variable)
    if not value:
        raise ValueError(f"{variable} is not set; remedy: export {variable}=<folder>")
    path = Path(value)
    if not path.is_dir():
        raise ValueError(f"{variable}={value} is not a folder; remedy: mkdir -p {value}")
    return path


def dataset_name(name_or_id: str | int) -> str:
    """Return the full name of a data set, found in any of nnU-Net's three folders.

    Args:
        name_or_id: ``4``, ``"4"`` or ``"Dataset004_Hippocampus"``.

    Raises:
        ValueError: The argument is neither a number nor a name, or the number is not unique.
    """
    text = str(name_or_id)
    if re.fullmatch(r"Dataset\d{3}_.+", text):
        return text
    if not text.isdecimal():
        raise ValueError(
            f"data set {text!r}: expected a number, as 4, or a name, as Dataset004_Hippocampus"
        )
    folders = [Path(os.environ[name]) for name in FOLDERS if os.environ.get(name)]
    prefix = f"Dataset{int(text):03d}_"
    found = sorted(
        {path.name for folder in folders for path in folder.glob(f"{prefix}*") if path.is_dir()}
    )
    where = ", ".join(map(str, folders)) or "nowhere: nnU-Net's folders are not set"
    if not found:
        raise ValueError(
            f"data set {text}: no folder {prefix}… (looked in {where}); remedy: check the number "
            f"and {', '.join(FOLDERS)}"
        )
    if len(found) > 1:
        raise ValueError(
            f"data set {text}: several have this number: {', '.join(found)} (looked in {where}); "
            "remedy: give the name"
        )
    return found[0]


def find_trainings(results: Path, dataset: str) -> list[Training]:
    """Return every training of a data set that has a folder, sorted."""
    found = []
    for folder in (results / dataset).glob("*__*__*/fold_*"):
        parts = folder.parent.name.split("__")
        if len(parts) == 3 and folder.is_dir():  # ensembles have more
            trainer, plans, configuration = parts
            fold = folder.name.removeprefix("fold_")
            found.append(Training(dataset, configuration, plans, trainer, fold))
    return sorted(found)


def state(folder: Path) -> State:
    """Return the state of a training.

    Args:
        folder: The training's ``fold_X``.

    Returns:
        ``finished``: nnU-Net's validation is complete; ``interrupted``: there is a checkpoint that
        ``--c`` continues from; ``absent``: there is neither.
    """
    if validation_dice(folder) is not None:
        return "finished"
    resumable = any((folder / name).is_file() for name in CHECKPOINTS)
    return "interrupted" if resumable else "absent"


def validation_dice(folder: Path) -> float | None:
    """Return nnU-Net's mean Dice over the foreground and the validation cases.

    Args:
        folder: A training's ``fold_X``.

    Returns:
        The mean, NaN if the summary has none, or None if the validation is not complete.
    """
    path = folder / "validation" / "summary.json"
    try:
        status = path.stat()
        return _dice_of_version(path, status.st_mtime_ns, status.st_size)
    except (OSError, ValueError):  # absent, incomplete or unreadable
        return None


@functools.cache
def _dice_of_version(path: Path, _changed: int, _size: int) -> float:
    """Return the mean Dice of a complete summary, read only when it has changed."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
        file.seek(max(0, _size - len(_END)))
        end = file.read()
    # nnU-Net indents its summary, so a brace at the start of a line is the last one and the file is
    # complete. The means come first, so hundreds of kB of cases need not be parsed.
    if end == _END and (found := _MEAN_DICE.search(head)):
        return float(found[1])
    return float(read_summary(path).get("foreground_mean", {}).get("Dice", "nan"))


def set_broken_checkpoints_aside(folder: Path) -> None:
    """Rename checkpoints that were cut off while being written, which nnU-Net could not load.

    The training must not be running: a checkpoint that is being written looks the same.
    """
    for path in whole_and_broken_checkpoints(folder)[1]:
        path.rename(path.with_name(f"{path.name}.broken"))


def whole_and_broken_checkpoints(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the checkpoints of a training that nnU-Net can load, and those that were cut off.

    A checkpoint is a zip archive, whose directory is written last.
    """
    there = [folder / name for name in CHECKPOINTS if (folder / name).is_file()]
    whole = [path for path in there if zipfile.is_zipfile(path)]
    return whole, [path for path in there if path not in whole]


def resume_flags(folder: Path) -> list[str]:
    """Return the flags of ``nnUNetv2_train`` that continue a training: ``--c``, ``--val``, none."""
    whole = [path.name for path in whole_and_broken_checkpoints(folder)[0]]
    if CHECKPOINTS[0] in whole:
        return ["--val"]
    return ["--c"] if whole else []


def read_summary(path: Path) -> dict[str, Any]:
    """Read the ``summary.json`` of nnU-Net's validation.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is no complete summary; the message has a remedy.
    """
    summary = read_json(path)
    if not isinstance(summary, dict) or not isinstance(summary.get("metric_per_case"), list):
        raise ValueError(
            f"{path}: has no list 'metric_per_case', so it is no summary of nnU-Net's validation; "
            "remedy: nnUNetv2_train … --val writes it again"
        )
    return summary


def read_json(path: Path) -> Any:  # noqa: ANN401 (whatever the file holds)
    """Read a JSON file; a ValueError names the file if it is incomplete."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: not readable as JSON ({error}); remedy: write it again"
        ) from error
