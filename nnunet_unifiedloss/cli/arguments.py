"""Parts that the commands share: texts of the help, types of arguments."""

from __future__ import annotations

import argparse

PROGRAM = "nnunet-unifiedloss"
TRAIN = "nnUNetv2_train DATASET 3d_fullres 0 -tr nnUNetTrainerUnifiedFocal"


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


def fold(text: str) -> str:
    """The name of a fold: a whole number or ``all``."""
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number or 'all', got {text!r}")
    return text if text == "all" else str(int(text))
