"""Training curves of a comparison, from nnU-Net's training logs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_unifiedloss.results.training_log import read_epochs
from nnunet_unifiedloss.results.trainings import Training, nnunet_folder

__all__ = ["training_curves"]


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
        for row in _epochs(training.folder(root))
    ]
    columns = ["dataset", "method", "fold", "epoch", "train_loss", "val_loss", "pseudo_dice"]
    return pd.DataFrame(rows, columns=columns)


def _epochs(folder: Path) -> list[dict[str, Any]]:
    """All epochs of a training; one that was run again after ``--c`` counts once, the last."""
    epochs: dict[int, dict[str, Any]] = {}
    for log in sorted(folder.glob("training_log_*.txt")):
        for row in read_epochs(log.read_text(encoding="utf-8", errors="replace")):
            epochs[row["epoch"]] = row
    return [epochs[number] for number in sorted(epochs)]
