"""Parsing of nnU-Net's training logs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from statistics import fmean
from typing import Any

__all__ = ["mean_pseudo_dice", "read_epochs"]

_EPOCH = re.compile(r": Epoch (\d+)\s*$")
_LOSS = re.compile(r": (train_loss|val_loss) (nan|-?inf|-?\d+\.?\d*(?:e[+-]?\d+)?)\s*$", re.I)
_PSEUDO_DICE = re.compile(r"Pseudo dice \[(.*)\]\s*$")


def mean_pseudo_dice(line: str) -> float | None:
    """Return the mean over the classes; NumPy 2 writes ``np.float32(0.8)`` instead of ``0.8``.

    Example:
        >>> mean_pseudo_dice("Pseudo dice [0.5, nan, 0.7] ")
        0.6
        >>> mean_pseudo_dice("Pseudo dice [np.float32(0.5), np.float32(nan)] ")
        0.5
    """
    found = _PSEUDO_DICE.search(line)
    values = re.findall(r"(\d+\.?\d*(?:e[+-]?\d+)?)(?=[),\]])", f"{found[1]}]") if found else []
    return fmean(map(float, values)) if values else None


def read_epochs(text: str) -> Iterator[dict[str, Any]]:
    r"""Yield epoch, train_loss, val_loss and pseudo_dice of each completed epoch.

    Example:
        >>> log = "t: Epoch 3\nt: train_loss -0.5\nt: val_loss -0.25\nt: Pseudo dice [0.5]"
        >>> list(read_epochs(log))
        [{'epoch': 3, 'train_loss': -0.5, 'val_loss': -0.25, 'pseudo_dice': 0.5}]
    """
    row: dict[str, Any] = {}
    for line in text.splitlines():
        if found := _EPOCH.search(line):
            row = {"epoch": int(found[1])}
        elif found := _LOSS.search(line):
            row[found[1]] = float(found[2])
        elif "Pseudo dice [" in line and "epoch" in row:
            yield {**row, "pseudo_dice": mean_pseudo_dice(line)}
