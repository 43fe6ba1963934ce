"""Training curves from nnU-Net's training logs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_unifiedloss.trainings import Training, nnunet_folder

__all__ = ["read_epochs", "training_curves"]

_EPOCH = re.compile(r": Epoch (\d+)\s*$")
_LOSS = re.compile(r": (train_loss|val_loss) (nan|-?inf|-?\d+\.?\d*(?:e[+-]?\d+)?)\s*$", re.I)
_PSEUDO_DICE = re.compile(r": Pseudo dice \[(.*)\]\s*$")
# a NumPy scalar is printed as np.float32(0.5) or, by older releases, as 0.5
_SCORE = re.compile(r"(?:np\.\w+\()?(nan|\d+\.?\d*(?:e[+-]?\d+)?)\)?", re.IGNORECASE)


def training_curves(trainings: Mapping[Training, str]) -> pd.DataFrame:
    """Losses and mean pseudo-Dice of every epoch.

    Args:
        trainings: The method that each training belongs to.

    Returns:
        Columns dataset, method, fold, epoch, train_loss, val_loss and pseudo_dice; a training
        without logs has no rows.
    """
    root = nnunet_folder("nnUNet_results")
    rows = [
        {"dataset": training.dataset, "method": method, "fold": training.fold, **row}
        for training, method in trainings.items()
        for row in read_epochs(training.folder(root))
    ]
    columns = ["dataset", "method", "fold", "epoch", "train_loss", "val_loss", "pseudo_dice"]
    return pd.DataFrame(rows, columns=columns)


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """What the logs of a training say of each epoch; one that was run again counts once, the last.

    Args:
        folder: nnU-Net's ``fold_X``.
    """
    epochs: dict[int, dict[str, Any]] = {}
    for log in sorted(folder.glob("training_log_*.txt")):
        for row in _read_log(log.read_text(encoding="utf-8", errors="replace")):
            epochs[row["epoch"]] = row
    return [epochs[number] for number in sorted(epochs)]


def _read_log(text: str) -> Iterator[dict[str, Any]]:
    row: dict[str, Any] = {}
    for line in text.splitlines():
        if found := _EPOCH.search(line):
            row = {"epoch": int(found[1])}
        elif found := _LOSS.search(line):
            row[found[1]] = float(found[2])
        elif found := _PSEUDO_DICE.search(line):
            scores = [float(score) for score in _SCORE.findall(found[1])]
            defined = [score for score in scores if score == score]
            row["pseudo_dice"] = sum(defined) / len(defined) if defined else float("nan")
            if "epoch" in row:
                yield row
