"""Properties of every loss on any batch: shapes, classes, masks, logits, parameters."""

from __future__ import annotations

import inspect
import itertools
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunet_unifiedloss import losses
from tests.helpers.batches import IGNORE
from tests.helpers.table import TABLE, every_loss, every_mode, parameter_sets
from tests.losses.test_numerics import NEGATIVE

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

# of parameters by name, or by loss and name where a loss has its own
SHARE = st.floats(0, 1)
POSITIVE = st.floats(0.01, 1)
RANGES = {
    "alpha": SHARE,
    "beta": SHARE,
    "delta": SHARE,
    "weight": SHARE,
    "gamma": st.floats(0, 0.95),
    "smooth": st.sampled_from([0, 1e-7, 1e-5, 1]),
    "include_background": st.booleans(),
    "k": st.floats(1, 100),
    "weight_dice": st.floats(0.1, 2),
    "weight_ce": st.floats(0.1, 2),
    "gamma_dice": st.floats(0.1, 2),
    "gamma_ce": st.floats(0.1, 2),
    "erosions": st.integers(1, 12),
    "window": st.sampled_from([3, 5, 9]),
    "c": st.floats(1e-3, 1),
    "ExponentialLogarithmicLoss smooth": st.sampled_from([1e-7, 1e-5, 1]),
    **{f"{name} beta": POSITIVE for name in ("TverskyLoss", "FocalTverskyLoss")},
    "DiceBoundaryLoss alpha": POSITIVE,
    "AsymmetricSimilarityLoss beta": st.floats(0.1, 3),
    "FocalTverskyLoss gamma": st.floats(0.3, 3),
    "PenaltyGeneralizedDiceLoss k": st.floats(0.1, 10),
    "StructuralSimilarityLoss beta": st.floats(0, 0.95),
    **{f"{name} alpha": st.floats(0.1, 3) for name in ("HausdorffDTLoss", "HausdorffERLoss")},
    "DiceHausdorffLoss alpha": st.floats(0.1, 3),
    **{f"{name} gamma": st.floats(0, 5) for name in ("FocalLoss", "DiceFocalLoss")},
    **{f"{name} alpha": st.none() | SHARE for name in ("FocalLoss", "DiceFocalLoss")},
    **{f"{name} gamma": st.floats(0, 5) for name in ("SymmetricFocalLoss", "AsymmetricFocalLoss")},
}


@st.composite
def parameters_in_range(draw, name: str, regions: bool, dims: int) -> dict[str, object]:
    """A value in range for each parameter of the loss itself."""
    options = losses.SegmentationLoss.__init__.__annotations__
    drawn = {}
    for parameter in inspect.signature(getattr(losses, name)).parameters:
        if parameter == "spacing":
            # as published, φ has the wrong sign in the object where voxels are smaller than 1
            smallest = 1 if "Boundary" in name else 0.3
            drawn[parameter] = draw(st.none() | st.tuples(*[st.floats(smallest, 5)] * dims))
        elif parameter == "class_weights":
            drawn[parameter] = draw(st.tuples(*[st.floats(0.1, 5)] * (2 if regions else 3)))
        elif parameter not in options:
            own = f"{name} {parameter}"
            drawn[parameter] = draw(RANGES[own if own in RANGES else parameter])
    return drawn


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
    """A batch with parameters of the table or random ones; some classes are absent.

    Some voxels are ignored, or all of them, or all of one sample. Scales reach from logits of a new
    network to saturated ones.
    """
    dims = draw(st.sampled_from([2, 3]))
    space = tuple(draw(st.integers(1, 7)) for _ in range(dims))
    table = st.sampled_from(parameter_sets(name, regions=regions, dims=dims))
    parameters = draw(table | parameters_in_range(name, regions, dims))
    fixed = parameters.get("class_weights") is not None
    channels = 3 if fixed else draw(st.integers(2, 5))
    size = draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    scale = draw(st.sampled_from([1e-3, 1.0, 10.0, 1e4]))
    logits = scale * torch.randn(size, channels, *space, generator=generator, dtype=torch.float64)
    present = draw(st.lists(st.integers(0, channels - 1), min_size=1, unique=True))
    ignore = draw(st.booleans())
    ignored = torch.rand(size, 1, *space, generator=generator) < draw(st.sampled_from([0.3, 1]))
    ignored[0] |= draw(st.booleans())
    if regions:
        target = torch.zeros(size, channels, *space, dtype=torch.bool)
        for region in present:
            target[:, region] = torch.rand(size, *space, generator=generator) < 0.3
        target = torch.cat([target, ignored], 1) if ignore else target
    else:
        chosen = torch.randint(len(present), (size, 1, *space), generator=generator)
        target = torch.tensor(present)[chosen]
        target = target.masked_fill(ignored, IGNORE) if ignore else target
        target = target.to(draw(st.sampled_from([torch.float32, torch.int64, torch.int16])))
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
    @pytest.mark.parametrize("examples", [4, pytest.param(40, marks=pytest.mark.slow)])
    def test(name, regions, examples):
        @settings(
            max_examples=examples,
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
    results = []
    for dtype in (torch.float64, torch.float64, torch.float32, torch.bfloat16, torch.float16):
        given_logits, target = batch.logits.to(dtype), batch.target.clone()
        logits = given_logits.clone().requires_grad_()
        value = batch.value(logits, target)
        value.backward()
        assert torch.isfinite(value)
        # gradients of a CE of thousands, squared, are beyond the range of half precision
        assert torch.isfinite(logits.grad).all() or dtype == torch.float16
        assert value >= 0 or name in NEGATIVE
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.equal(logits, given_logits)
        assert torch.equal(target, batch.target)
        results.append((value, logits.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


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
    """Foreground classes (regions) in another order in logits and target change nothing."""
    channels = batch.logits.shape[1]
    first = 0 if regions else 1
    weights = getattr(batch.loss, "class_weights", None)
    if channels - first < 2 or (weights is not None and not regions):
        return
    foreground = torch.randperm(channels - first, generator=torch.Generator().manual_seed(0))
    order = torch.cat([torch.arange(first), foreground + first])  # new channel → old channel
    target = batch.target.clone()
    if regions:
        target[:, :channels] = batch.target[:, order]
    else:
        for new, old in enumerate(order.tolist()):
            target[batch.target == old] = new
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
    ("name", "regions"), [*itertools.product(sorted(set(TABLE) - NOT_ZERO), [False, True])]
)
def test_a_perfect_prediction_costs_nothing(name, regions):
    """Apart from those that are negative by definition, every loss is 0 for what is perfect."""

    @settings(
        max_examples=12,
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
