"""Corner cases that occur in every training: nothing may become inf, NaN or a dead gradient."""

from __future__ import annotations

import contextlib
import itertools
import random

import pytest
import torch

from nnunet_unifiedloss import losses
from tests.helpers.batches import make_batch
from tests.helpers.table import every_loss, every_mode, parameter_sets

SATURATED = 1e4


def logits_for(target, classes, regions, confidence):
    """Logits that predict the target with a margin; negative ones predict it wrongly."""
    if regions:
        return torch.where(target != 0, confidence, -confidence)
    one_hot = torch.nn.functional.one_hot(target[:, 0].long(), classes).movedim(-1, 1)
    return torch.where(one_hot != 0, confidence, -confidence)


def corner_cases(regions, channels=3):
    _, target = make_batch(regions=regions, channels=channels, dims=3)
    empty, full = torch.zeros_like(target), torch.ones_like(target)
    half = target.clone()
    half[0] = 0
    for label, labels in (
        ("target", target),
        ("empty", empty),
        ("full", full),
        ("one sample empty", half),
    ):
        for confidence in (SATURATED, 101.0, 80.0, 20.0, 1e-3, 0.0, -20.0, -80.0, -SATURATED):
            yield f"{label} {confidence}", logits_for(labels, channels, regions, confidence), labels
        yield (
            f"{label} at random",
            make_batch(regions=regions, channels=channels, dims=3, seed=3)[0].detach(),
            labels,
        )
        mixed = logits_for(labels, channels, regions, SATURATED)
        mixed[..., :2] *= -1  # perfect but for some voxels that are as wrong as can be
        yield f"{label} mixed", mixed, labels


NEGATIVE = {"ComboLoss", "BoundaryLoss", "DiceBoundaryLoss"}  # as they were published

MIXED_PRECISION = {
    "float32": (torch.float32, contextlib.nullcontext),
    "float16": (torch.float16, contextlib.nullcontext),
    "bfloat16": (torch.bfloat16, contextlib.nullcontext),
    "autocast-float16": (torch.float32, lambda: torch.autocast("cpu", torch.float16)),
    "autocast-bfloat16": (torch.float32, lambda: torch.autocast("cpu", torch.bfloat16)),
    "autocast-bfloat16-logits": (torch.bfloat16, lambda: torch.autocast("cpu", torch.bfloat16)),
}


def assert_finite(name, regions, case, precision, parameters, batch_dice):
    label, logits, target = case
    dtype, context = MIXED_PRECISION[precision]
    x = logits.detach().to(dtype).requires_grad_()
    loss = getattr(losses, name)(regions=regions, batch_dice=batch_dice, **parameters)
    with context():
        value = loss(x, target)
    # as a gradient scaler does; the structural gradient is CE/c, large in float16 as it is
    scale = 1 if name == "StructuralSimilarityLoss" else 1024
    (scale * value).backward()
    where = f"{label} {precision} {parameters} batch_dice={batch_dice}"
    assert value.dtype == torch.float32, where
    assert torch.isfinite(value), where
    assert value >= 0 or name in NEGATIVE, where
    assert torch.isfinite(x.grad).all(), where


@every_loss
@every_mode
def test_finite_everywhere(name, regions):
    """Each corner case in two precisions, with parameters drawn from the table."""
    draw = random.Random(0)
    sets = parameter_sets(name, regions=regions, dims=3)
    for case in corner_cases(regions):
        for precision in draw.sample(list(MIXED_PRECISION), 2):
            assert_finite(name, regions, case, precision, draw.choice(sets), draw.random() < 0.5)


@pytest.mark.slow
@every_loss
@every_mode
@pytest.mark.parametrize("precision", MIXED_PRECISION)
def test_finite_everywhere_in_all_combinations(name, regions, precision):
    sets = parameter_sets(name, regions=regions, dims=3)
    for case, parameters in itertools.product(corner_cases(regions), sets):
        for batch_dice in (False, True):
            assert_finite(name, regions, case, precision, parameters, batch_dice)


@every_loss
@every_mode
def test_a_perfect_prediction_costs_nothing(name, regions):
    _, target = make_batch(regions=regions, channels=3)
    logits = logits_for(target, 3, regions, SATURATED).requires_grad_()
    value = getattr(losses, name)(regions=regions)(logits, target)
    value.backward()
    assert value.item() == (-0.5 if name == "ComboLoss" else 0)
    assert logits.grad.abs().max() == 0


CROSS_ENTROPY_LIKE = [
    "CrossEntropyLoss", "FocalLoss", "SymmetricFocalLoss", "AsymmetricFocalLoss", "ComboLoss",
    "DiceCrossEntropyLoss", "UnifiedFocalLoss", "SymmetricUnifiedFocalLoss",
]  # fmt: skip


@every_mode
@pytest.mark.parametrize("name", CROSS_ENTROPY_LIKE)
@pytest.mark.parametrize("confidence", [20.0, 80.0, SATURATED])
def test_confident_errors_keep_their_gradient(name, regions, confidence):
    """A clip of probabilities would silence exactly the voxels that are most wrong."""
    _, target = make_batch(regions=regions, channels=3)
    logits = logits_for(target, 3, regions, -confidence).requires_grad_()
    getattr(losses, name)(regions=regions)(logits, target).backward()
    voxels = logits.numel() if regions else logits[:, 0].numel()
    at_true_class = logits.grad.abs() if regions else logits.grad.abs().amax(1)
    assert (at_true_class > 0.1 / voxels).all()


@every_loss
@every_mode
def test_precise_where_the_prediction_is_almost_perfect(name, regions):
    """float32 has the digits of float64 although 1 − p_t is far below the float32 spacing at 1."""
    _, target = make_batch(regions=regions, channels=3)
    results = {}
    for dtype in (torch.float32, torch.float64):
        logits = logits_for(target, 3, regions, 15.0).to(dtype).requires_grad_()
        value = getattr(losses, name)(regions=regions)(logits, target)
        value.backward()
        results[dtype] = value.item(), logits.grad.double()
    assert results[torch.float32][0] == pytest.approx(results[torch.float64][0], rel=1e-5)
    expected = results[torch.float64][1]
    if name in ("StructuralSimilarityLoss", "LovaszLoss"):
        return  # weights from differences, or from the order, of nearly equal numbers
    torch.testing.assert_close(
        results[torch.float32][1], expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item()
    )


@every_loss
@every_mode
@pytest.mark.parametrize("margin", [16.0, 20.0, 40.0])
def test_precise_where_a_structure_is_missed_with_confidence(name, regions, margin):
    """1 − p_t rounds to 1 there in float32, but its gradient must not be lost with it."""
    _, target = make_batch(regions=regions, channels=3, dims=3)
    wrong = logits_for(torch.zeros_like(target), 3, regions, margin / 2)
    for parameters in parameter_sets(name, regions=regions, dims=3):
        results = {}
        for dtype in (torch.float32, torch.float64):
            logits = wrong.clone().to(dtype).requires_grad_()
            value = getattr(losses, name)(regions=regions, **parameters)(logits, target)
            value.backward()
            results[dtype] = value.item(), logits.grad.double()
        (value, grad), (expected_value, expected) = results.values()
        assert value == pytest.approx(expected_value, rel=1e-5)
        # the gradient at the true class; at a saturated class it is a difference of equal numbers
        if regions:
            gradient, expected_gradient = grad[target], expected[target]
        else:
            gradient, expected_gradient = (
                g.gather(1, target.long())[target > 0] for g in (grad, expected)
            )
        scale = expected_gradient.abs().max().item()
        if name == "HausdorffERLoss" or scale < torch.finfo(torch.float32).tiny:
            continue  # the largest of errors that are equal in float32 alone gets another gradient
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-3 * scale)
        assert (gradient.abs().max() > 0) == (scale > 0)


@pytest.mark.parametrize(("channels", "logit"), [(2, 1e30), (7, 1e7), (300, 1e7), (1000, 1e6)])
def test_cross_entropy_has_no_ceiling(channels, logit):
    """1 − p_t sums to slightly less than 1 there; nothing may be concluded from the difference."""
    logits = torch.full((1, channels, 2, 2), logit)
    logits[:, 0] = 0
    value = losses.CrossEntropyLoss()(logits, torch.zeros(1, 1, 2, 2))
    assert value.item() == pytest.approx(logit, rel=1e-4)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9, 0.99])
def test_focusing_has_no_infinite_gradient(gamma):
    """(1−p)^γ at p = 1 and (1−TI)^(1−γ) at TI = 1, approached from all sides."""
    _, target = make_batch(channels=2)
    for confidence in torch.linspace(0, 120, 61).tolist():
        logits = logits_for(target, 2, False, confidence).requires_grad_()
        losses.UnifiedFocalLoss(gamma=gamma)(logits, target).backward()
        assert torch.isfinite(logits.grad).all(), confidence


def test_large_volumes_are_summed_precisely():
    """Sums over millions of voxels, of which nearly all are of one class."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 128, 128, 128, generator=generator)
    target = (torch.rand(1, 1, 128, 128, 128, generator=generator) < 1e-4).float()
    for name in ("UnifiedFocalLoss", "DiceCrossEntropyLoss"):
        loss = getattr(losses, name)()
        assert loss(logits, target).item() == pytest.approx(
            loss(logits.double(), target).item(), rel=1e-6
        )


@pytest.mark.parametrize("space", [(1, 1), (1, 9), (9, 1), (1, 1, 1), (5, 1, 3), (2, 3, 1)])
@every_loss
def test_thin_patches(name, space):
    """Axes of length one occur at the lowest outputs of deep supervision."""
    logits = torch.randn(2, 3, *space, requires_grad=True)
    value = getattr(losses, name)()(logits, torch.ones(2, 1, *space))
    value.backward()
    assert torch.isfinite(logits.grad).all()


STRONGLY_FOCUSED = {
    "UnifiedFocalLoss": {"gamma": 0.99},
    "SymmetricFocalTverskyLoss": {"gamma": 0.99},
    "FocalTverskyLoss": {"gamma": 0.05},
    "ExponentialLogarithmicLoss": {"gamma_dice": 0.05},
    "FocalLoss": {"gamma": 0.5},
    "AsymmetricFocalLoss": {"gamma": 0.5},
}


@every_mode
@pytest.mark.parametrize("name", STRONGLY_FOCUSED)
@pytest.mark.parametrize("margin", [40.0, 60.0, 75.0, 87.0, 99.0, 101.0, 103.0])
def test_derivatives_are_finite_where_probabilities_are_nearly_zero(name, regions, margin):
    """First and second derivatives in float32 with an absent class and confident voxels."""
    target = torch.zeros(1, 2 if regions else 1, 6, 6, 6)
    logits = logits_for(target, 2, regions, margin / 2 if not regions else margin)
    logits[..., 0] *= 0.01  # some voxels are not confident
    for x in (logits, logits_for(target, 2, regions, margin / 2 if not regions else margin)):
        x = x.clone().requires_grad_()
        value = getattr(losses, name)(regions=regions, **STRONGLY_FOCUSED[name])(x, target)
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        (second,) = torch.autograd.grad((gradient * torch.ones_like(x)).sum(), x)
        assert gradient.isfinite().all()
        assert second.isfinite().all()
