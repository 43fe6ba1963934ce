"""Value and gradient against frozen results of third-party code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_unifiedloss import losses
from tests.helpers.formulas import dice, dice_cross_entropy, dice_top_k, lovasz

FOLDER = Path(__file__).parents[1] / "reference"
INPUTS = np.load(FOLDER / "inputs.npz")
GRADIENTS = np.load(FOLDER / "gradients.npz")
ROWS = [
    row for row in json.loads((FOLDER / "values.json").read_text()) if hasattr(losses, row["loss"])
]

# These libraries subtract nearly equal float32 numbers, 1 − Dice or the steps of the Jaccard loss:
# near a perfect prediction few digits are left, and the formula in float64 stands in for them
ROUNDED = {
    ("DiceLoss", "mc2d_nearperfect"): dice,
    ("DiceCrossEntropyLoss", "mc2d_nearperfect"): dice_cross_entropy,
    ("DiceTopKLoss", "mc2d_nearperfect"): dice_top_k,
    ("LovaszLoss", "mc2d_nearperfect"): lovasz,
}
# of these no third party has an implementation that could check them; formulas.py does
ONLY_FORMULA = {
    "BalancedCrossEntropyLoss",
    "DiceBoundaryLoss",
    "DiceFocalLoss",
    "DiceHausdorffLoss",
    "DistancePenalizedCrossEntropyLoss",
    "ExponentialLogarithmicLoss",
    "HausdorffERLoss",
    "PenaltyGeneralizedDiceLoss",
    "ShapeAwareLoss",
    "StructuralSimilarityLoss",
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    "row", ROWS, ids=lambda row: f"{row['loss']}-{row['case']}-{row['function']}"
)
def test_agrees_with_third_party_code(row, dtype):
    logits = torch.tensor(INPUTS[row["case"] + "/logits"], dtype=dtype, requires_grad=True)
    labels = torch.tensor(INPUTS[row["case"] + "/labels"])
    value = getattr(losses, row["loss"])(**row["kwargs"])(logits, labels)
    expected = row["value"]
    if formula := ROUNDED.get((row["loss"], row["case"])):
        assert expected == pytest.approx(value.item(), abs=1e-7)
        expected = formula(logits.detach().numpy(), labels.numpy()[:, None], **row["kwargs"])
    tolerance = 1e-4 if "nearperfect" in row["case"] else 1e-5
    assert value.item() == pytest.approx(
        expected, rel=tolerance if dtype == torch.float32 else 1e-6
    )
    if row["grad"]:
        value.backward()
        reference = GRADIENTS[row["grad"]]
        if np.isnan(reference).any():  # MONAI divides by an absent class's volume
            assert row["loss"] == "GeneralizedDiceLoss"
            assert logits.grad.isfinite().all()
            return
        if row["loss"] == "LovaszLoss":  # rounded steps; in float32 neighbours change places
            error = np.linalg.norm(logits.grad.numpy() - reference)
            assert error < 1e-3 * np.linalg.norm(reference)
            return
        np.testing.assert_allclose(
            logits.grad, reference, rtol=0, atol=2e-6 * np.abs(reference).max()
        )


def test_every_loss_that_others_have_is_checked():
    checked = {row["loss"] for row in ROWS}
    assert checked == set(losses.SegmentationLoss.registry) - ONLY_FORMULA
