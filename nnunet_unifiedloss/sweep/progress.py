"""The progress of a training, read from nnU-Net's logs."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from nnunet_unifiedloss.results.training_log import mean_pseudo_dice
from nnunet_unifiedloss.results.trainings import read_json

# about ten epochs: a thousand long logs on a slow file server could not be read completely
TAIL = 8192
LOGS_LOOKED_AT = 3
SECONDS_WITHOUT_LOG = 600.0
EPOCHS_WITHOUT_LOG = 3


@dataclass(frozen=True)
class Progress:
    """The progress of a training.

    Attributes:
        epoch: Number of completed epochs.
        epochs: Number of epochs of the whole training.
        pseudo_dice: Mean over classes of the last epoch's pseudo Dice.
        seconds_left: Estimated from the last epochs, without the validation at the end.
        validating: True once all epochs are completed and nnU-Net predicts the validation cases.
        changed: Time at which the log last grew, in seconds since 1970.
        patience: Seconds for which the log of a running training may stay unchanged.
    """

    epoch: int | None = None
    epochs: int | None = None
    pseudo_dice: float | None = None
    seconds_left: float | None = None
    validating: bool = False
    changed: float = 0.0
    patience: float = SECONDS_WITHOUT_LOG


def read_progress(folder: Path) -> Progress | None:
    """Read the progress of a training.

    Args:
        folder: The training's ``fold_X``.

    Returns:
        The progress, or None if nnU-Net has not written a log.
    """
    logs = _logs(folder)
    if not logs:
        return None
    text = ""
    for _, path in logs[:LOGS_LOOKED_AT]:  # a continued training has one log for each start
        text = _tail(path) + text
        if ": Epoch " in text:
            break
    started = [int(number) for number in re.findall(r": Epoch (\d+) *$", text, re.MULTILINE)]
    durations = [float(number) for number in re.findall(r"Epoch time: (\d+\.?\d*) s", text)]
    epochs = _number_of_epochs(folder)
    validating = "Training done." in text or ": predicting " in text
    epoch = epochs if validating else _complete(text, started)
    left = None
    if durations and epochs is not None and epoch is not None:
        left = max(0, epochs - epoch) * median(durations)
    return Progress(
        epoch=epoch,
        epochs=epochs,
        pseudo_dice=_last_pseudo_dice(text),
        seconds_left=left,
        validating=validating,
        changed=logs[0][0],
        patience=max([SECONDS_WITHOUT_LOG, *(EPOCHS_WITHOUT_LOG * d for d in durations)]),
    )


def _logs(folder: Path) -> list[tuple[float, Path]]:
    """Return the logs and the times of their last change, newest first."""
    try:
        with os.scandir(folder) as entries:
            logs = [
                (entry.stat().st_mtime, Path(entry.path))
                for entry in entries
                if entry.name.startswith("training_log_") and entry.name.endswith(".txt")
            ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(logs, reverse=True)


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        return file.read().decode("utf-8", errors="replace")


def _complete(text: str, started: list[int]) -> int | None:
    if not started:
        return None
    after = text.rpartition(f": Epoch {started[-1]}")[2]
    return started[-1] + ("Epoch time: " in after)


def _number_of_epochs(folder: Path) -> int | None:
    """Read the number of epochs from the settings that nnU-Net logs at the start."""
    try:
        return int(read_json(folder / "debug.json")["num_epochs"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _last_pseudo_dice(text: str) -> float | None:
    lines = [line for line in text.splitlines() if "Pseudo dice [" in line]
    return mean_pseudo_dice(lines[-1]) if lines else None
