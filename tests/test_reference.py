"""Value and gradient against frozen results of third-party code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from formulas import dice, dice_cross_entropy

from nnunet_unifiedloss import losses

FOLDER = Path(__file__).parent / "reference"
INPUTS = np.load(FOLDER / "inputs.npz")
GRADIENTS = np.load(FOLDER / "gradients.npz")
ROWS = [
    row for row in json.loads((FOLDER / "values.json").read_text()) if hasattr(losses, row["loss"])
]

# nnU-Net computes 1 − Dice in float32: near a perfect prediction only three digits of it are left,
# so the formula in float64 stands in for these two rows
ROUNDED = {
    ("DiceLoss", "mc2d_nearperfect"): dice,
    ("DiceCrossEntropyLoss", "mc2d_nearperfect"): dice_cross_entropy,
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
        np.testing.assert_allclose(
            logits.grad, reference, rtol=0, atol=2e-6 * np.abs(reference).max()
        )


def test_every_loss_that_others_have_is_checked():
    assert {row["loss"] for row in ROWS} >= set(losses.SegmentationLoss.registry)
