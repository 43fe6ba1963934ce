"""The Lovász loss of large images, whose errors are put in order by their leading digits only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunet_unifiedloss.losses import LovaszLoss
from nnunet_unifiedloss.losses.region.lovasz import loops, maps
from nnunet_unifiedloss.losses.region.lovasz import loss as lovasz
from tests.helpers.batches import make_batch, options


def in_order(errors, mask):
    """The steps of one class, every voxel in its place."""
    return maps.steps_of_class(errors, mask)


def by_levels(errors, mask, by=maps):
    """The steps of the second of two classes, the first one's weight being 0."""
    weights = torch.tensor([[0.0, 1.0]], dtype=errors.dtype)
    error, truth = errors[None, None], mask.int()[None, None]
    (steps,) = by.of_two_classes(error, truth, weights)
    return steps[0, 0]


either = pytest.mark.parametrize("by", [maps, loops], ids=["maps", "loops"])


def extension(errors, mask):
    """Berman's definition: the Jaccard loss of the k worst voxels, for each k."""
    order = np.argsort(-errors, kind="stable")
    inside = mask[order].astype(float)
    wrong_inside, wrong_outside = np.cumsum(inside), np.cumsum(1 - inside)
    jaccard_loss = 1 - (mask.sum() - wrong_inside) / (mask.sum() + wrong_outside)
    return float((errors[order] * np.diff(jaccard_loss, prepend=0)).sum())


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize(
    ("scale", "space"),
    [(0.1, (64, 64, 40)), (1, (64, 64, 40)), (1, (128, 128, 96)), (10, (64, 64, 40))],
)
def test_large_images_agree_with_the_definition(regions, scale, space):
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(2, 1, *space, generator=generator) < 0.02
    logits = scale * torch.randn(2, 1 if regions else 2, *target.shape[2:], generator=generator)
    logits[:, -1:] += scale * (2 * target.float() - 1)
    assert target.numel() > lovasz.SORTED
    found = LovaszLoss(regions=regions)(logits, target if regions else target.float())
    margin = logits[:, -1:] if regions else logits[:, 1:] - logits[:, :1]
    probability = torch.sigmoid(margin.double())
    errors = (target.double() - probability).abs().flatten().numpy()
    mask = target.flatten().numpy()
    expected = (extension(errors, mask) + extension(errors, ~mask)) / 2
    assert found.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("regions", [False, True])
def test_the_value_of_millions_of_voxels_keeps_its_digits(regions):
    """Every error is ½, whose steps add up to 1; in one sum after the other they would not."""
    logits, target = (
        torch.zeros(1, 1 if regions else 2, 256, 128, 128),
        torch.zeros(1, 1, 256, 128, 128),
    )
    target[..., :40] = 1
    assert LovaszLoss(regions=regions)(logits, target).item() == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("ignored", [False, True], ids=["all", "ignore"])
@pytest.mark.parametrize(("classes", "regions"), [(2, False), (4, False), (2, True)])
def test_levels_change_the_loss_and_its_gradient_little(monkeypatch, classes, regions, ignored):
    generator = torch.Generator().manual_seed(0)
    space = (40, 32, 32)
    logits = 3 * torch.randn(2, classes, *space, generator=generator)
    mask = torch.rand(2, 1, *space, generator=generator) < 0.3
    if regions:
        target = torch.rand(logits.shape, generator=generator) < 0.1
        target = torch.cat([target, mask], 1) if ignored else target
    else:
        present = max(classes - 1, 2)  # of many classes the last one is absent
        target = torch.randint(0, present, mask.shape, generator=generator).float()
        target = target.masked_fill(mask, 255) if ignored else target
    loss = LovaszLoss(regions=regions, ignore_label=255 if ignored else None)
    found = []
    for limit in (10, 10**6):
        monkeypatch.setattr(lovasz, "SORTED", limit)
        leaf = logits.clone().requires_grad_()
        value = loss(leaf, target)
        found.append((value.item(), *torch.autograd.grad(value, leaf)))
    (quick, quick_grad), (exact, grad) = found
    assert quick == pytest.approx(exact, rel=5e-4)
    assert (quick_grad - grad).norm() < 0.01 * grad.norm()
    if ignored:
        assert not quick_grad[mask.expand_as(quick_grad)].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slopes_by_levels_are_close_to_those_in_order(dtype):
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(100_000, generator=generator) < 0.05
    errors = torch.rand(mask.shape, generator=generator, dtype=dtype) ** 3
    exact, quick = (f(errors, mask) for f in (in_order, by_levels))
    assert quick.sum().item() == pytest.approx(1, rel=1e-5)
    assert (quick - exact).norm() < 0.01 * exact.norm()


@either
def test_levels_of_one_voxel_give_the_exact_slopes(by):
    errors, mask = torch.linspace(0.1, 1, 50), torch.arange(50) % 3 == 0
    torch.testing.assert_close(by_levels(errors, mask, by), in_order(errors, mask))


@either
@pytest.mark.parametrize("value", [0.0, 1e-30, 0.5, 1.0])
def test_equal_errors_share_their_steps(value, by):
    mask = torch.tensor([True, False, True, False, False])
    steps = by_levels(torch.full((5,), value), mask, by)
    # the mean of the mask's voxels first, 1/2 each and nothing, and last, 1/5 each and 1/5 in all
    expected = torch.where(mask, (1 / 2 + 1 / 5) / 2, (0 + (1 - 2 / 5) / 3) / 2)
    torch.testing.assert_close(steps, expected)


@either
def test_no_voxel_in_the_mask_gives_no_nan(by):
    assert by_levels(torch.zeros(3), torch.zeros(3, dtype=torch.bool), by).isfinite().all()


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_loops_give_the_steps_of_the_maps(classes, threads):
    generator = torch.Generator().manual_seed(classes)
    errors = 10.0 ** torch.empty(2, 1, 500).uniform_(-12, 0, generator=generator)
    others = 10.0 ** torch.empty(2, 1, classes, 500).uniform_(-12, 0, generator=generator)
    truth = torch.randint(classes + 1, errors.shape, generator=generator, dtype=torch.uint8)
    ignored = truth == classes
    errors[ignored] = 0
    others.masked_fill_(ignored[:, :, None], 0)
    others.scatter_(2, truth[:, :, None].long().clamp_max(classes - 1), 0)
    weights = torch.rand(1, classes, generator=generator)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    expected, found = (by.by_levels(errors, others, truth, weights) for by in (maps, loops))
    if classes == 2:
        expected += maps.of_two_classes(errors, truth, weights)
        found += loops.of_two_classes(errors, truth, weights)
    torch.set_num_threads(before)
    for one, other in zip(found, expected, strict=True):
        counting = ~(ignored if one.ndim == 3 else ignored[:, :, None].expand_as(one))
        torch.testing.assert_close(one[counting], other[counting])


@pytest.mark.parametrize(("classes", "regions"), [(2, False), (4, False), (2, True)])
@pytest.mark.parametrize("ignored", [False, True], ids=["all", "ignore"])
def test_levels_where_neighbours_are_counted_apart(monkeypatch, classes, regions, ignored):
    """As on a GPU."""
    monkeypatch.setattr(lovasz, "SORTED", 10)
    logits, target = make_batch(
        regions=regions, ignore=ignored, dims=3, channels=classes, dtype=torch.float32
    )
    loss = LovaszLoss(**options(regions=regions, ignore=ignored))
    logits.requires_grad_()
    torch._dynamo.reset()
    values = [f(logits, target) for f in (loss, torch.compile(loss, backend="aot_eager"))]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits) for value in values))


@pytest.mark.parametrize(("classes", "regions"), [(2, False), (4, False), (2, True)])
@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf")])
def test_logits_that_are_no_numbers_give_no_number(monkeypatch, classes, regions, value):
    monkeypatch.setattr(lovasz, "SORTED", 10)
    logits = torch.zeros(1, classes, 8, 8)
    logits[0, 0, 3, 3] = value
    target = torch.zeros(1, classes if regions else 1, 8, 8)
    target[..., 4:] = 1
    leaf = logits.requires_grad_()
    loss = LovaszLoss(regions=regions)(leaf, target)
    loss.backward()  # a GPU would end the training where an index is out of range
    assert loss.isnan() or (regions and value == float("inf"))
