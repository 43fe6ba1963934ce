"""nnU-Net's trainings on disk: what their folders are called and how far each one got.

Nothing here imports torch or nnU-Net: the state of a thousand trainings is read in seconds.
"""

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

# what nnU-Net's commands take where nothing is said, and its cross-validation
DEFAULT_PLANS = "nnUNetPlans"
DEFAULT_FOLDS = ("0", "1", "2", "3", "4")

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
# in the order in which nnU-Net's --c looks for one to continue from
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")

# where nnU-Net's summary.json has the mean Dice, and how it ends
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
        """The name of nnU-Net's folder for all folds of this model."""
        return f"{self.trainer}__{self.plans}__{self.configuration}"

    def folder(self, results: Path) -> Path:
        """Where nnU-Net keeps this training below ``nnUNet_results``."""
        return results / self.dataset / self.model / f"fold_{self.fold}"


def nnunet_folder(variable: str) -> Path:
    """One of nnU-Net's three folders.

    Args:
        variable: ``nnUNet_raw``, ``nnUNet_preprocessed`` or ``nnUNet_results``.

    Raises:
        ValueError: The environment variable is not set, or names no folder.
    """
    value = os.environ.get(variable)
    if not value:
        raise ValueError(f"{variable} is not set; remedy: export {variable}=<folder>")
    path = Path(value)
    if not path.is_dir():
        raise ValueError(f"{variable}={value} is not a folder; remedy: mkdir -p {value}")
    return path


def dataset_name(name_or_id: str | int) -> str:
    """The full name of a data set, found as nnU-Net finds it: in any of its three folders.

    Args:
        name_or_id: ``4``, ``"4"`` or ``"Dataset004_Hippocampus"``.

    Raises:
        ValueError: It is neither a number nor a name, or no or several data sets have the number.
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
    """Every training of a data set of which nnU-Net has left a folder, sorted."""
    found = []
    for folder in (results / dataset).glob("*__*__*/fold_*"):
        parts = folder.parent.name.split("__")
        if len(parts) == 3 and folder.is_dir():  # ensembles have more
            trainer, plans, configuration = parts
            fold = folder.name.removeprefix("fold_")
            found.append(Training(dataset, configuration, plans, trainer, fold))
    return sorted(found)


def state(folder: Path) -> State:
    """How far a training got.

    Args:
        folder: Its ``fold_X``.

    Returns:
        ``finished``: nnU-Net's validation is complete; ``interrupted``: there is a checkpoint that
        ``--c`` continues from; ``absent``: there is neither.
    """
    if validation_dice(folder) is not None:
        return "finished"
    resumable = any((folder / name).is_file() for name in CHECKPOINTS)
    return "interrupted" if resumable else "absent"


def validation_dice(folder: Path) -> float | None:
    """nnU-Net's mean Dice over the foreground and the validation cases.

    Args:
        folder: A training's ``fold_X``.

    Returns:
        The mean, NaN if the summary has none, or None if the validation is not complete.
    """
    path = folder / "validation" / "summary.json"
    try:
        status = path.stat()
        return _dice_of_version(path, status.st_mtime_ns, status.st_size)
    except (OSError, ValueError):  # absent, cut short, or out of reach just now
        return None


@functools.cache
def _dice_of_version(path: Path, _changed: int, _size: int) -> float:
    """The mean Dice of a complete summary, read only when it has changed."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
        file.seek(max(0, _size - len(_END)))
        end = file.read()
    # nnU-Net indents: a brace at the start of a line is the last one, and the file is not cut
    # short; the means come first. So there is no need to parse some hundred kB of cases.
    if end == _END and (found := _MEAN_DICE.search(head)):
        return float(found[1])
    return float(read_summary(path).get("foreground_mean", {}).get("Dice", "nan"))


def set_broken_checkpoints_aside(folder: Path) -> None:
    """Rename checkpoints that were cut off while being written, which nnU-Net could not load.

    Only for a training that is not running: a checkpoint that is being written looks the same.
    """
    for path in whole_and_broken_checkpoints(folder)[1]:
        path.rename(path.with_name(f"{path.name}.broken"))


def whole_and_broken_checkpoints(folder: Path) -> tuple[list[Path], list[Path]]:
    """The checkpoints of a training that nnU-Net can load, and those that were cut off.

    A checkpoint is a zip archive, whose directory comes last: without it, it is not whole.
    """
    there = [folder / name for name in CHECKPOINTS if (folder / name).is_file()]
    whole = [path for path in there if zipfile.is_zipfile(path)]
    return whole, [path for path in there if path not in whole]


def resume_flags(folder: Path) -> list[str]:
    """The flags of ``nnUNetv2_train`` that go on with a training: none, ``--c`` or ``--val``."""
    whole = [path.name for path in whole_and_broken_checkpoints(folder)[0]]
    if CHECKPOINTS[0] in whole:
        return ["--val"]
    return ["--c"] if whole else []


def read_summary(path: Path) -> dict[str, Any]:
    """Read the ``summary.json`` of nnU-Net's validation.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is cut short or is no summary; the message names the file and the remedy.
    """
    summary = read_json(path)
    if not isinstance(summary, dict) or not isinstance(summary.get("metric_per_case"), list):
        raise ValueError(
            f"{path}: has no list 'metric_per_case', so it is no summary of nnU-Net's validation; "
            "remedy: nnUNetv2_train … --val writes it again"
        )
    return summary


def read_json(path: Path) -> Any:  # noqa: ANN401 (whatever the file holds)
    """Read a JSON file; a ValueError names the file if it is cut short."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: not readable as JSON ({error}); remedy: write it again"
        ) from error
