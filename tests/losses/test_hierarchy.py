"""The paper's claim: the Unified Focal loss reduces to the losses that it unifies.

That one region is the problem of two classes is checked for every loss in test_losses.py.
"""

from __future__ import annotations

import pytest
import torch

from nnunet_unifiedloss.losses import (
    ComboLoss,
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    FocalTverskyLoss,
    SymmetricUnifiedFocalLoss,
    TverskyLoss,
    UnifiedFocalLoss,
)
from tests.helpers.batches import make_batch

both_forms = pytest.mark.parametrize("unified", [UnifiedFocalLoss, SymmetricUnifiedFocalLoss])
pytestmark = [
    pytest.mark.parametrize("dims", [2, 3]),
    pytest.mark.parametrize("mode", ["labels", "regions", "labels-ignore", "regions-ignore"]),
]
GAMMA = 0.3


def assert_equal(mode, dims, left, right, left_factor=1.0, shift=0.0, **arguments):
    """left(**arguments) = left_factor · right + shift, in value and gradient."""
    regions, ignore = "regions" in mode, "ignore" in mode
    logits, target = make_batch(regions=regions, ignore=ignore, dims=dims)
    options = {"regions": regions, "ignore_label": 9 if ignore else None}
    a = left(**arguments, **options)(logits, target)
    b = left_factor * right(**options)(logits, target) + shift
    assert a.item() == pytest.approx(b.item(), rel=1e-7)
    (grad_a,) = torch.autograd.grad(a, logits)
    (grad_b,) = torch.autograd.grad(b, logits)
    torch.testing.assert_close(grad_a, grad_b, rtol=1e-6, atol=1e-12)


@both_forms
def test_cross_entropy(unified, mode, dims):
    assert_equal(mode, dims, unified, CrossEntropyLoss, 0.5, weight=0, gamma=0, delta=0.5)


def test_focal(mode, dims):
    def focal(**options):
        return FocalLoss(gamma=GAMMA, **options)

    assert_equal(
        mode, dims, SymmetricUnifiedFocalLoss, focal, 0.5, weight=0, gamma=GAMMA, delta=0.5
    )


@both_forms
def test_tversky(unified, mode, dims):
    def tversky(**options):
        return TverskyLoss(alpha=0.2, beta=0.8, smooth=1e-7, include_background=True, **options)

    assert_equal(mode, dims, unified, tversky, weight=1, gamma=0, delta=0.8)


@both_forms
def test_dice(unified, mode, dims):
    def dice(**options):
        return DiceLoss(smooth=2e-7, include_background=True, **options)

    assert_equal(mode, dims, unified, dice, weight=1, gamma=0, delta=0.5)


def test_focal_tversky(mode, dims):
    def focal_tversky(**options):
        return FocalTverskyLoss(
            alpha=0.3, beta=0.7, gamma=1 - GAMMA, smooth=1e-7, include_background=True, **options
        )

    assert_equal(
        mode, dims, SymmetricUnifiedFocalLoss, focal_tversky, weight=1, gamma=GAMMA, delta=0.7
    )


@both_forms
def test_combo(unified, mode, dims):
    def combo(**options):
        return ComboLoss(alpha=0.5, beta=0.5, smooth=2e-7, **options)

    assert_equal(mode, dims, unified, combo, shift=0.5, weight=0.5, gamma=0, delta=0.5)
