"""Every loss against its formula in plain NumPy, in every mode."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from nnunet_unifiedloss import losses
from nnunet_unifiedloss.losses import CompoundLoss, FocalLoss, SegmentationLoss, UnifiedFocalLoss
from tests.helpers.batches import IGNORE, make_batch, options
from tests.helpers.table import TABLE, every_loss, every_mode, parameter_sets


def build(name, **arguments):
    return getattr(losses, name)(**arguments)


def test_every_loss_has_a_row():
    assert sorted(TABLE) == sorted(SegmentationLoss.registry)
    assert all(name in losses.__all__ for name in TABLE)


@every_loss
def test_rows_change_every_parameter(name):
    defaults = getattr(losses, name).defaults()
    changed = {
        key
        for regions in (False, True)
        for row in parameter_sets(name, regions=regions, dims=3)
        for key, value in row.items()
        if value != defaults[key]
    }
    assert changed == set(defaults)


# in 2-D every combination; in 3-D one of each by default, and the others under slow
FORMULA_CASES = [
    pytest.param(
        ignore,
        batch_dice,
        dims,
        id=f"{'ignore' if ignore else 'all'}-{'batch' if batch_dice else 'sample'}-{dims}D",
        marks=[pytest.mark.slow] if dims == 3 and ignore != batch_dice else [],
    )
    for ignore, batch_dice, dims in itertools.product([False, True], [False, True], [2, 3])
]


@every_loss
@every_mode
@pytest.mark.parametrize(("ignore", "batch_dice", "dims"), FORMULA_CASES)
def test_formula(name, regions, ignore, batch_dice, dims):
    logits, target = make_batch(regions=regions, ignore=ignore, dims=dims)
    arguments = options(regions=regions, ignore=ignore, batch_dice=batch_dice)
    for parameters in parameter_sets(name, regions=regions, dims=dims):
        value = build(name, **parameters, **arguments)(logits, target)
        expected = TABLE[name].formula(
            logits.detach().numpy(), target.numpy(), **parameters, **arguments
        )
        assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-12), parameters


@pytest.mark.parametrize("regions", [False, True])
def test_focal_weights_for_each_class(regions):
    logits, target = make_batch(regions=regions)
    weights = [0.2, 3.0] if regions else [0.2, 3.0, 1.5]
    value = FocalLoss(alpha=weights, regions=regions)(logits, target)
    expected = TABLE["FocalLoss"].formula(
        logits.detach().numpy(), target.numpy(), alpha=weights, regions=regions
    )
    assert value.item() == pytest.approx(expected, rel=1e-9)
    moved = FocalLoss(alpha=weights, regions=regions).to("meta")(
        logits.detach().to("meta"), target.to("meta")
    )
    assert moved.device.type == "meta"


@every_loss
@every_mode
@pytest.mark.parametrize("ignore", [False, True], ids=["all", "ignore"])
@pytest.mark.parametrize("batch_dice", [False, True], ids=["sample", "batch"])
def test_gradient_agrees_with_finite_differences(name, regions, ignore, batch_dice):
    logits, target = make_batch(regions=regions, ignore=ignore)
    for parameters in parameter_sets(name, regions=regions, dims=2):
        loss = build(
            name, **parameters, **options(regions=regions, ignore=ignore, batch_dice=batch_dice)
        )
        assert torch.autograd.gradcheck(
            lambda x, loss=loss: loss(x, target), logits, fast_mode=True
        )


@every_loss
@pytest.mark.parametrize("dims", [2, 3])
def test_one_region_is_the_two_class_problem(name, dims):
    logits, target = make_batch(regions=True, channels=1, dims=dims)
    for parameters in parameter_sets(name, regions=True, dims=dims):
        two_classes = torch.cat([torch.zeros_like(logits), logits], 1)
        as_region = build(name, regions=True, **parameters)(logits, target)
        as_labels = build(name, **parameters)(two_classes, target.long())
        assert as_region.item() == pytest.approx(as_labels.item(), rel=1e-12)
        (grad_region,) = torch.autograd.grad(as_region, logits)
        (grad_labels,) = torch.autograd.grad(as_labels, logits)
        torch.testing.assert_close(grad_region, grad_labels, rtol=1e-9, atol=1e-15)


@every_loss
@every_mode
@pytest.mark.parametrize("batch_dice", [False, True], ids=["sample", "batch"])
def test_ignoring_equals_cropping(name, regions, batch_dice):
    logits, target = make_batch(regions=regions)
    kept = (..., slice(0, 4), slice(None))
    if regions:
        ignored = torch.zeros_like(target[:, :1])
        ignored[..., 4:, :] = True
        masked = torch.cat([target, ignored], 1)
    else:
        masked = target.clone()
        masked[..., 4:, :] = IGNORE
    loss = build(name, **options(regions=regions, ignore=True, batch_dice=batch_dice))
    value = loss(logits, masked)
    cropped_logits = logits[kept].detach().requires_grad_()
    cropped = build(name, regions=regions, batch_dice=batch_dice)(cropped_logits, target[kept])
    assert value.item() == pytest.approx(cropped.item(), rel=1e-12)
    (grad,) = torch.autograd.grad(value, logits)
    (cropped_grad,) = torch.autograd.grad(cropped, cropped_logits)
    torch.testing.assert_close(grad[kept], cropped_grad, rtol=1e-9, atol=1e-15)
    assert grad[..., 4:, :].abs().max() == 0


@every_loss
@every_mode
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_not_even_logits_that_are_no_numbers_count_where_ignored(name, regions, value, dtype):
    logits, target = make_batch(regions=regions, ignore=True, dims=3, dtype=dtype)
    ignored = target[:, -1:] > 0 if regions else target == IGNORE
    loss = build(name, **options(regions=regions, ignore=True))
    found = []
    for each in (logits.detach(), logits.detach().masked_fill(ignored, value)):
        total = loss(each.requires_grad_(), target)
        found.append((total, *torch.autograd.grad(total, each)))
    torch.testing.assert_close(*found)


@every_loss
@every_mode
@pytest.mark.parametrize("batch_dice", [False, True], ids=["sample", "batch"])
def test_an_ignored_sample_counts_nowhere(name, regions, batch_dice):
    logits, target = make_batch(regions=regions, ignore=True)
    if regions:
        target[1, -1] = True
    else:
        target[1] = IGNORE
    loss = build(name, **options(regions=regions, ignore=True, batch_dice=batch_dice))
    assert loss(logits, target).item() == pytest.approx(
        loss(logits[:1], target[:1]).item(), rel=1e-12
    )


@every_loss
@every_mode
@pytest.mark.parametrize("batch_dice", [False, True], ids=["sample", "batch"])
def test_everything_ignored_gives_zero(name, regions, batch_dice):
    logits, target = make_batch(regions=regions, ignore=True)
    if regions:
        target[:, -1] = True
    else:
        target[:] = IGNORE
    value = build(name, **options(regions=regions, ignore=True, batch_dice=batch_dice))(
        logits, target
    )
    value.backward()
    assert value.item() == 0
    assert logits.grad.abs().max() == 0


@every_loss
@every_mode
def test_target_dtypes_and_shapes_agree(name, regions):
    logits, target = make_batch(regions=regions)
    loss = build(name, regions=regions)
    expected = loss(logits, target).item()
    for dtype in (
        torch.uint8,
        torch.int16,
        torch.int64,
        torch.float16,
        torch.float32,
        torch.float64,
    ):
        assert loss(logits, target.to(dtype)).item() == expected
    if regions:
        assert loss(logits, target.bool()).item() == expected
    else:
        assert loss(logits, target[:, 0]).item() == expected


@every_loss
@every_mode
def test_inputs_are_not_modified_and_layout_does_not_matter(name, regions):
    logits, target = make_batch(regions=regions, ignore=True, dims=3)
    before = logits.detach().clone(), target.clone()
    loss = build(name, **options(regions=regions, ignore=True))
    value = loss(logits, target)
    assert torch.equal(logits, before[0])
    assert torch.equal(target, before[1])
    assert loss(logits, target).item() == value.item()
    strided = logits.to(memory_format=torch.channels_last_3d)
    assert loss(strided, target).item() == pytest.approx(value.item(), rel=1e-12)


@every_loss
def test_terms_add_up(name):
    logits, target = make_batch()
    loss = build(name)
    terms = loss.terms(logits, target)
    assert sum(term.item() for term in terms.values()) == pytest.approx(loss(logits, target).item())
    assert (len(terms) == 2) == isinstance(loss, CompoundLoss)


def test_a_compound_takes_the_softmax_once(monkeypatch):
    logits, target = make_batch()
    calls = []
    softmax = torch.log_softmax
    monkeypatch.setattr(torch, "log_softmax", lambda *a, **k: calls.append(1) or softmax(*a, **k))
    UnifiedFocalLoss()(logits, target)
    assert len(calls) == 1


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("weight", [0, 1])
@pytest.mark.parametrize("name", ["UnifiedFocalLoss", "SymmetricUnifiedFocalLoss"])
def test_delta_above_a_half_favours_sensitivity(name, weight, regions):
    """A missed lesion costs more than an invented one of the same size, the more the larger δ."""
    target = torch.zeros(1, 1, 8, 8)
    target[..., :4, :4] = 1
    sure = torch.where(target == 1, 5.0, -5.0)
    missed, invented = sure.clone(), sure.clone()
    missed[..., :2, :4] = -5.0
    invented[..., 4:6, :4] = 5.0
    ratios = []
    for delta in (0.3, 0.6, 0.9):
        options = {"weight": weight, "gamma": 0, "include_background": False, "regions": regions}
        loss = build(name, delta=delta, **options)
        values = [
            loss(x if regions else torch.cat([-x, x], 1) / 2, target) for x in (missed, invented)
        ]
        ratios.append((values[0] / values[1]).item())
    assert ratios[0] < 1 < ratios[1] < ratios[2]


@every_loss
@every_mode
def test_second_derivatives_are_right(name, regions):
    logits, target = make_batch(regions=regions, ignore=True, batch=1)
    logits = logits.detach()[..., :3, :2].clone().requires_grad_()
    loss = build(name, **options(regions=regions, ignore=True))
    assert torch.autograd.gradgradcheck(
        lambda x: loss(x, target[..., :3, :2]), (logits,), atol=1e-5, rtol=1e-3, fast_mode=True
    )


@every_loss
@every_mode
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_function_transforms_agree_with_autograd(name, regions):
    """torch.func.grad of the batch, and vmap over its samples."""
    logits, target = make_batch(regions=regions)
    loss = build(name, regions=regions)
    (expected,) = torch.autograd.grad(loss(logits, target), logits)
    logits = logits.detach()
    torch.testing.assert_close(torch.func.grad(loss)(logits, target), expected)

    def of_sample(x, y):
        return loss(x[None], y[None])

    values = torch.func.vmap(of_sample)(logits, target)
    gradients = torch.func.vmap(torch.func.grad(of_sample))(logits, target)
    for i in range(len(logits)):
        x = logits[i : i + 1].requires_grad_()
        value = loss(x, target[i : i + 1])
        torch.testing.assert_close(values[i], value)
        torch.testing.assert_close(gradients[i : i + 1], torch.autograd.grad(value, x)[0])


def test_repr_names_every_parameter():
    text = repr(UnifiedFocalLoss(delta=0.7, batch_dice=True, ignore_label=4))
    assert "weight=0.5, delta=0.7, gamma=0.5, smooth=1e-07, include_background=True" in text
    assert "regions=False, ignore_label=4, batch_dice=True, ddp=False" in text


def test_a_second_loss_of_the_same_name_is_refused():
    with pytest.raises(TypeError, match="DiceLoss"):
        type("DiceLoss", (SegmentationLoss,), {})


def test_float64_keeps_its_digits():
    logits, target = make_batch()
    assert UnifiedFocalLoss()(logits, target).dtype == torch.float64
    assert UnifiedFocalLoss()(logits.float(), target).dtype == torch.float32
    assert np.isfinite(UnifiedFocalLoss()(logits.half(), target).item())


@every_loss
@every_mode
def test_a_diverged_network_has_no_finite_loss(name, regions):
    logits, target = make_batch(regions=regions)
    loss = getattr(losses, name)(**options(regions=regions))
    assert not loss(torch.full_like(logits, torch.nan), target).isfinite()
