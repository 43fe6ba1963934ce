"""What must hold for every loss on any batch: shapes, classes, masks, logits, parameters."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import torch
from batches import IGNORE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from table import TABLE, every_loss, every_mode, parameter_sets
from test_numerics import NEGATIVE

from nnunet_unifiedloss import losses

# what these compare is where voxels lie, so space can be mirrored but not shuffled
SPATIAL = {
    "BoundaryLoss",
    "DiceBoundaryLoss",
    "DiceHausdorffLoss",
    "DistancePenalizedCrossEntropyLoss",
    "HausdorffDTLoss",
    "HausdorffERLoss",
    "ShapeAwareLoss",
    "StructuralSimilarityLoss",
}
# a voxel that gets better can change the distances, curves or windows of the others
NOT_MONOTONE = {
    "DiceHausdorffLoss",
    "HausdorffDTLoss",
    "HausdorffERLoss",
    "ShapeAwareLoss",
    "StructuralSimilarityLoss",
}


class Batch(NamedTuple):
    """Logits, a target that fits them, and the loss for both."""

    logits: torch.Tensor
    target: torch.Tensor
    loss: torch.nn.Module

    def value(self, logits=None, target=None) -> torch.Tensor:
        logits = self.logits if logits is None else logits
        return self.loss(logits, self.target if target is None else target)


@st.composite
def batches(draw, name: str, regions: bool) -> Batch:
    """A batch with any of the loss's parameter sets; some classes are absent, some voxels ignored.

    Scales reach from logits of a new network to saturated ones.
    """
    dims = draw(st.sampled_from([2, 3]))
    space = tuple(draw(st.integers(1, 7)) for _ in range(dims))
    parameters = draw(st.sampled_from(parameter_sets(name, regions=regions, dims=dims)))
    fixed = "class_weights" in parameters
    channels = 3 if fixed else draw(st.integers(2, 4))
    size = draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    scale = draw(st.sampled_from([1e-3, 1.0, 10.0, 1e4]))
    logits = scale * torch.randn(size, channels, *space, generator=generator, dtype=torch.float64)
    present = draw(st.integers(1, channels))
    ignore = draw(st.booleans())
    ignored = torch.rand(size, 1, *space, generator=generator) < 0.3
    if regions:
        target = torch.rand(size, channels, *space, generator=generator) < 0.3
        target[:, present:] = False
        target = torch.cat([target, ignored], 1) if ignore else target
    else:
        target = torch.randint(present, (size, 1, *space), generator=generator).float()
        target = target.masked_fill(ignored, IGNORE) if ignore else target
    loss = getattr(losses, name)(
        regions=regions,
        ignore_label=IGNORE if ignore else None,
        batch_dice=draw(st.booleans()),
        **parameters,
    )
    return Batch(logits, target, loss)


def property_test(check):
    """Run a check of a batch for every loss in both modes."""

    @every_loss
    @every_mode
    def test(name, regions):
        @settings(
            max_examples=12,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(batch=batches(name, regions))
        def run(batch):
            check(name, regions, batch)

        run()

    test.__doc__ = check.__doc__
    return test


def true_logits(batch: Batch, regions: bool) -> torch.Tensor:
    """1 for the channels that are true of a voxel, −1 for the others, 0 where it is ignored."""
    channels = batch.logits.shape[1]
    if regions:
        mask = batch.target[:, :channels].bool()
        ignored = batch.target[:, channels:].bool() if batch.loss.ignore_label is not None else None
    else:
        label = batch.target.long()
        ignored = label == IGNORE
        mask = label.clamp(max=channels - 1) == torch.arange(channels).view(
            1, -1, *[1] * (label.ndim - 2)
        )
    signs = torch.where(mask, 1.0, -1.0).double()
    return signs if ignored is None else signs.masked_fill(ignored, 0)


@property_test
def test_finite_repeatable_and_without_side_effects(name, regions, batch):
    """Value and gradient are finite, the same twice, and the inputs stay as they were."""
    before = batch.logits.clone(), batch.target.clone()
    results = []
    for dtype in (torch.float64, torch.float64, torch.float32, torch.bfloat16):
        logits = batch.logits.detach().clone().to(dtype).requires_grad_()
        value = batch.value(logits)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(logits.grad).all()
        assert value >= 0 or name in NEGATIVE
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        results.append((value, logits.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(batch.logits, before[0])
    assert torch.equal(batch.target, before[1])


@property_test
def test_order_does_not_matter(name, regions, batch):
    """Neither the order of the samples, nor where the image begins, nor the order of voxels."""
    value = batch.value()
    order = torch.randperm(len(batch.logits), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(batch.value(batch.logits[order], batch.target[order]), value)
    axes = tuple(range(2, batch.logits.ndim))
    mirrored = batch.logits.flip(axes), batch.target.flip(axes)
    torch.testing.assert_close(batch.value(*mirrored), value)
    if name not in SPATIAL:
        space = batch.logits.shape[2:]
        order = torch.randperm(space.numel(), generator=torch.Generator().manual_seed(1))
        shuffled = (
            tensor.flatten(2)[..., order].view(*tensor.shape[:2], *space)
            for tensor in (batch.logits, batch.target)
        )
        torch.testing.assert_close(batch.value(*shuffled), value)


@property_test
def test_foreground_classes_are_equal(name, regions, batch):
    """Exchanging two foreground classes (two regions) in logits and target changes nothing."""
    channels = batch.logits.shape[1]
    first = 0 if regions else 1
    weights = getattr(batch.loss, "class_weights", None)
    if channels - first < 2 or (weights is not None and not regions):
        return
    order = list(range(channels))
    order[first], order[-1] = order[-1], order[first]
    if regions:
        target = batch.target.clone()
        target[:, :channels] = batch.target[:, order]
    else:
        target = batch.target.clone()
        target[batch.target == first] = channels - 1
        target[batch.target == channels - 1] = first
    torch.testing.assert_close(batch.value(batch.logits[:, order], target), batch.value())


@property_test
def test_a_step_towards_the_truth_is_no_loss(name, regions, batch):
    """Raising the logits of what is true and lowering the others never raises the loss."""
    if name in NOT_MONOTONE:
        return
    signs = true_logits(batch, regions)
    chosen = torch.rand(signs[:, :1].shape, generator=torch.Generator().manual_seed(0)) < 0.5
    for step in (0.1, 3.0):
        better = batch.value(batch.logits + step * signs * chosen)
        assert better <= batch.value() + 1e-9 * (1 + batch.value().abs())


# negative, or off by a constant, by their published definition
NOT_ZERO = {"BoundaryLoss", "ComboLoss", "DiceBoundaryLoss"}


@pytest.mark.parametrize(
    ("name", "regions"), itertools.product(sorted(set(TABLE) - NOT_ZERO), [False, True])
)
def test_a_perfect_prediction_costs_nothing(name, regions):
    """Apart from those that are negative by definition, every loss is 0 for what is perfect."""

    @settings(
        max_examples=8,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(batch=batches(name, regions))
    def run(batch):
        perfect = batch.value(1e3 * true_logits(batch, regions))
        assert perfect <= 1e-4, perfect

    run()
