"""One row for each loss: what it is checked against and with which parameters.

Parameters are asymmetric on purpose (α ≠ β, δ ≠ ½): symmetric ones hide swapped arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tests.helpers import formulas, spatial_formulas


class Row(NamedTuple):
    """A loss in the test table.

    Attributes:
        formula: Independent NumPy reference.
        parameters: Sets of constructor arguments to check besides the defaults; together they
            change every parameter.
        out_of_range: Constructor arguments that must be refused.
        by_mode: More sets of parameters, by ``regions``.
        anisotropic: Sets of parameters to check with a ``spacing``.
    """

    formula: Callable[..., float]
    parameters: list[dict[str, Any]]
    out_of_range: list[dict[str, Any]]
    by_mode: dict[bool, list[dict[str, Any]]] = {}  # noqa: RUF012 (never changed)
    anisotropic: list[dict[str, Any]] = []  # noqa: RUF012


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

SPACING = [{"spacing": [1]}, {"spacing": [1, -1, 1]}]
DICE_PART = [{"smooth": 1, "include_background": True}]
TABLE |= {
    "WeightedCrossEntropyLoss": Row(
        formulas.weighted_cross_entropy,
        [],
        [{"class_weights": [1]}, {"class_weights": [0, 0]}, {"class_weights": [1, -1]}],
        # the number of weights depends on the mode
        by_mode={False: [{"class_weights": (0.2, 3, 1.5)}], True: [{"class_weights": (0.2, 3)}]},
    ),
    "BalancedCrossEntropyLoss": Row(formulas.balanced_cross_entropy, [], []),
    "TopKLoss": Row(
        formulas.top_k, [{"k": 25}, {"k": 0.5}, {"k": 100}], [{"k": 0}, {"k": 101}, {"k": -1}]
    ),
    "DistancePenalizedCrossEntropyLoss": Row(
        spatial_formulas.distance_penalized, [], SPACING, anisotropic=[{}]
    ),
    "JaccardLoss": Row(formulas.jaccard, DICE_PART, [{"smooth": -1}]),
    "GeneralizedDiceLoss": Row(
        formulas.generalized_dice,
        [{"smooth": 1, "include_background": False}, {"smooth": 0}],
        [{"smooth": -1}],
    ),
    "PenaltyGeneralizedDiceLoss": Row(
        formulas.penalty_generalized_dice,
        [{"k": 0.7, "smooth": 1, "include_background": False}, {"k": 0}],
        [{"k": -1}, {"smooth": -1}],
    ),
    "SensitivitySpecificityLoss": Row(
        formulas.sensitivity_specificity,
        [{"weight": 0.8, "smooth": 1, "include_background": True}, {"weight": 0}],
        [{"weight": 1.1}, {"smooth": -1}],
    ),
    "AsymmetricSimilarityLoss": Row(
        formulas.asymmetric_similarity,
        [{"beta": 0.5, "smooth": 1, "include_background": True}],
        [{"beta": -1}, {"smooth": -1}],
    ),
    "LogCoshDiceLoss": Row(formulas.log_cosh_dice, DICE_PART, [{"smooth": -1}]),
    "LovaszLoss": Row(formulas.lovasz, [], []),
    "BoundaryLoss": Row(
        spatial_formulas.boundary, [{"include_background": True}], SPACING, anisotropic=[{}]
    ),
    "HausdorffDTLoss": Row(
        spatial_formulas.hausdorff_dt,
        [{"alpha": 1.5, "include_background": True}],
        [{"alpha": 0}, {"alpha": -1}, *SPACING],
        anisotropic=[{}, {"alpha": 1}],
    ),
    "HausdorffERLoss": Row(
        spatial_formulas.hausdorff_er,
        [{"alpha": 1.5, "erosions": 3, "include_background": True}],
        [{"alpha": 0}, {"erosions": 0}],
    ),
    "ShapeAwareLoss": Row(spatial_formulas.shape_aware, [], SPACING, anisotropic=[{}]),
    "StructuralSimilarityLoss": Row(
        spatial_formulas.structural_similarity,
        [{"window": 5, "c": 0.1, "beta": 0.4, "weight": 0.2}],
        [{"window": 2}, {"window": 1}, {"c": 0}, {"beta": 1}, {"weight": 2}],
    ),
    "ExponentialLogarithmicLoss": Row(
        formulas.exponential_logarithmic,
        [
            {"weight_dice": 0.3, "weight_ce": 2, "gamma_dice": 0.7, "gamma_ce": 1.5},
            {"weight_dice": 0, "smooth": 1},
            {"weight_ce": 0, "include_background": False},
        ],
        [{"weight_dice": 0, "weight_ce": 0}, {"gamma_ce": 0}, {"gamma_dice": 0}, {"smooth": 0}],
    ),
    "DiceFocalLoss": Row(
        formulas.dice_focal,
        [{"gamma": 0.5, "alpha": 0.25}, *DICE_PART],
        [{"gamma": -1}, {"alpha": 2}, {"smooth": -1}],
    ),
    "DiceTopKLoss": Row(formulas.dice_top_k, [{"k": 30}, *DICE_PART], [{"k": 0}, {"smooth": -1}]),
    "DiceBoundaryLoss": Row(
        spatial_formulas.dice_boundary,
        [{"alpha": 0.5}, *DICE_PART],
        [{"alpha": 0}, {"alpha": 1.1}, *SPACING],
        anisotropic=[{}],
    ),
    "DiceHausdorffLoss": Row(
        spatial_formulas.dice_hausdorff,
        [{"alpha": 1}, *DICE_PART],
        [{"alpha": 0}, {"smooth": -1}, *SPACING],
        anisotropic=[{}],
    ),
}


def parameter_sets(name, *, regions, dims):
    """Every set of constructor arguments of a loss to check in a mode."""
    row = TABLE[name]
    spacing = {"spacing": (0.7, 2.5, 1.3)[:dims]}
    return [
        {},
        *row.parameters,
        *row.by_mode.get(regions, []),
        *({**parameters, **spacing} for parameters in row.anisotropic),
    ]


every_loss = pytest.mark.parametrize("name", sorted(TABLE))
every_mode = pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])
