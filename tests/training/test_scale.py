"""The scale of each loss against the gradients that benchmarks/gradient_norm.py measures."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from nnunet_unifiedloss import losses
from nnunet_unifiedloss.training.scales import scale_of
from tests.helpers.table import every_loss

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MEASURED = json.loads((BENCHMARKS / "measured.json").read_text())


@pytest.fixture
def gradient_norm(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gradient_norm")


@every_loss
def test_the_scale_is_that_of_the_benchmark(name):
    assert scale_of(getattr(losses, name)) == MEASURED["scale"][name]


def test_only_flat_losses_are_scaled(gradient_norm):
    for name, scale in MEASURED["scale"].items():
        smallest, largest = (MEASURED[f"gradient_{end}"][name] for end in ("smallest", "largest"))
        if largest <= gradient_norm.FLAT * smallest:
            assert scale * MEASURED["gradient"][name] == pytest.approx(1, rel=0.02)
        else:
            assert scale == 1


def test_the_benchmark_still_measures_the_same(gradient_norm):
    """The patches where the ratio of the Unified Focal loss is largest and smallest."""
    name = "UnifiedFocalLoss"
    trainers, shares = ["nnUNetTrainerUnifiedFocal"], ["13 %", "0.03 %"]
    (ratios,) = gradient_norm.measure(trainers, shares, ["trained"]).values()
    assert ratios.largest == pytest.approx(MEASURED["gradient_largest"][name], rel=0.01)
    assert ratios.smallest == pytest.approx(MEASURED["gradient_smallest"][name], rel=0.01)


def test_one_patch_makes_a_loss_uneven(gradient_norm):
    values = {(share, stage): 0.5 for share in gradient_norm.RADII for stage in "abc"}
    assert gradient_norm.Ratios(values).scale == 2
    assert gradient_norm.Ratios(values | {("none", "a"): 1.26}).scale == 1
    assert gradient_norm.Ratios(values | {("none", "a"): 0.0}).scale == 1
