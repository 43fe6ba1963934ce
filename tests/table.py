"""One row for each loss: what it is checked against and with which parameters.

Parameters are asymmetric on purpose (α ≠ β, δ ≠ ½): symmetric ones hide swapped arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import formulas
import pytest


class Row(NamedTuple):
    """A loss in the test table.

    Attributes:
        formula: Independent NumPy reference.
        parameters: Sets of constructor arguments to check besides the defaults; together they
            change every parameter.
        out_of_range: Constructor arguments that must be refused.
    """

    formula: Callable[..., float]
    parameters: list[dict[str, Any]]
    out_of_range: list[dict[str, Any]]


UNIFIED = [
    {"weight": 0.3, "delta": 0.8, "gamma": 0.2},
    {"weight": 1, "gamma": 0.75, "smooth": 1.0, "include_background": False},
    {"weight": 0, "gamma": 0.25},
]
UNIFIED_REFUSED = [
    {"weight": 1.1},
    {"weight": -0.1},
    {"delta": 2},
    {"gamma": 1},
    {"gamma": -0.1},
    {"smooth": -1},
]

TABLE = {
    "CrossEntropyLoss": Row(formulas.cross_entropy, [], []),
    "FocalLoss": Row(
        formulas.focal,
        [{"gamma": 0.5}, {"gamma": 0}, {"gamma": 3, "alpha": 0.25}, {"alpha": 1}],
        [
            {"gamma": -1},
            {"alpha": 1.5},
            {"alpha": [1, -1]},
            {"alpha": [0, 0]},
            {"gamma": float("nan")},
        ],
    ),
    "SymmetricFocalLoss": Row(
        formulas.symmetric_focal,
        [{"delta": 0.9, "gamma": 0.3}, {"delta": 0, "gamma": 1}],
        [{"delta": 1.01}, {"gamma": -0.5}],
    ),
    "AsymmetricFocalLoss": Row(
        formulas.asymmetric_focal,
        [{"delta": 0.9, "gamma": 0.3}, {"delta": 0.2, "gamma": 0}],
        [{"delta": -0.01}, {"gamma": float("inf")}],
    ),
    "DiceLoss": Row(
        formulas.dice,
        [{"smooth": 1.0}, {"smooth": 0, "include_background": True}],
        [{"smooth": -1e-5}],
    ),
    "TverskyLoss": Row(
        formulas.tversky,
        [
            {"alpha": 0.1, "beta": 0.8},
            {"alpha": 2, "beta": 0, "smooth": 1, "include_background": True},
        ],
        [{"alpha": -0.1}, {"beta": -1}, {"alpha": 0, "beta": 0}, {"smooth": -1}],
    ),
    "FocalTverskyLoss": Row(
        formulas.focal_tversky,
        [
            {"alpha": 0.1, "beta": 0.8, "gamma": 0.4},
            {"gamma": 2, "smooth": 1, "include_background": True},
        ],
        [{"gamma": 0}, {"gamma": -1}, {"alpha": -0.1}],
    ),
    "SymmetricFocalTverskyLoss": Row(
        formulas.symmetric_focal_tversky,
        [{"delta": 0.9, "gamma": 0.3}, {"gamma": 0, "smooth": 1, "include_background": False}],
        [{"delta": 1.1}, {"gamma": 1}, {"gamma": -0.1}, {"smooth": -1}],
    ),
    "AsymmetricFocalTverskyLoss": Row(
        formulas.asymmetric_focal_tversky,
        [{"delta": 0.9, "gamma": 0.3}, {"gamma": 0, "smooth": 1, "include_background": False}],
        [{"delta": 1.1}, {"gamma": 1}, {"gamma": -0.1}, {"smooth": -1}],
    ),
    "ComboLoss": Row(
        formulas.combo,
        [{"alpha": 0.3, "beta": 0.8}, {"alpha": 0.9, "smooth": 1, "include_background": False}],
        [{"alpha": 1.1}, {"beta": -0.1}, {"smooth": -1}],
    ),
    "DiceCrossEntropyLoss": Row(
        formulas.dice_cross_entropy,
        [
            {"weight_dice": 0.3, "weight_ce": 2},
            {"weight_ce": 0, "smooth": 1, "include_background": True},
        ],
        [{"weight_dice": -1}, {"weight_dice": 0, "weight_ce": 0}, {"smooth": -1}],
    ),
    "SymmetricUnifiedFocalLoss": Row(formulas.symmetric_unified_focal, UNIFIED, UNIFIED_REFUSED),
    "UnifiedFocalLoss": Row(formulas.unified_focal, UNIFIED, UNIFIED_REFUSED),
}

every_loss = pytest.mark.parametrize("name", sorted(TABLE))
every_mode = pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])
