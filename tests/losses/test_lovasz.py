"""The Lovász loss of large images, whose errors are sorted by their leading digits only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunet_unifiedloss.losses import LovaszLoss, lovasz, ranking


def increments(compute, errors, mask):
    """The increments of one class, all of whose voxels count."""
    counted = torch.ones(len(errors), dtype=torch.bool)
    return compute(errors[None, None], mask[None, None], counted)[0, 0]


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
    """Every error is ½ and the increments add up to 1, unless a running sum rounds them."""
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
def test_increments_by_levels_are_close_to_those_by_sorting(dtype):
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(100_000, generator=generator) < 0.05
    errors = torch.rand(mask.shape, generator=generator, dtype=dtype) ** 3
    exact, quick = (increments(f, errors, mask) for f in (lovasz.by_sorting, lovasz.by_levels))
    assert quick.sum().item() == pytest.approx(1, rel=1e-5)
    assert (quick - exact).norm() < 0.01 * exact.norm()


def test_levels_of_one_voxel_give_the_exact_increments():
    errors, mask = torch.linspace(0.1, 1, 50), torch.arange(50) % 3 == 0
    exact, quick = (increments(f, errors, mask) for f in (lovasz.by_sorting, lovasz.by_levels))
    torch.testing.assert_close(quick, exact)


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.5, 1.0])
def test_equal_errors_share_their_increments(value):
    mask = torch.tensor([True, False, True, False, False])
    found = increments(lovasz.by_levels, torch.full((5,), value), mask)
    # the mean of the mask's voxels first, 1/2 each and nothing, and last, 1/5 each and 1/5 in all
    expected = torch.where(mask, (1 / 2 + 1 / 5) / 2, (0 + (1 - 2 / 5) / 3) / 2)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("compute", [lovasz.by_sorting, lovasz.by_levels])
def test_no_voxel_in_the_mask_gives_no_nan(compute):
    assert increments(compute, torch.zeros(3), torch.zeros(3, dtype=torch.bool)).isfinite().all()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_histogram(rows, device):
    generator = torch.Generator().manual_seed(0)
    row = torch.randint(rows, (1000,), generator=generator)
    bin_ = torch.randint(7, (1000,), generator=generator)
    counted = torch.rand(1000, generator=generator) < 0.5
    expected = np.zeros((rows, 7), int)
    np.add.at(expected, (row[counted].numpy(), bin_[counted].numpy()), 1)
    index, counted = (row * 7 + bin_).to(device), counted.to(device)
    found = ranking.histogram(index, 7, rows, counted)
    assert found.shape == (rows, 7)
    if device == "cpu":
        assert (found.numpy() == expected).all()


@pytest.mark.parametrize("rows", [1, 5, 100])
def test_histograms_filled_side_by_side_add_up(rows):
    """As on a GPU, where neighbouring elements are counted apart."""
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(rows * 7, (1001,), generator=generator)
    counted = torch.ones(1001, dtype=torch.bool)
    expected = ranking.histogram(index, 7, rows, counted)
    found = ranking.histogram(index, 7, rows, counted, copies=ranking.copies_on_a_gpu(rows))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("classes", "regions"), [(2, False), (4, False), (2, True)])
@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf")])
def test_nan_and_infinite_logits_give_no_finite_loss(monkeypatch, classes, regions, value):
    monkeypatch.setattr(lovasz, "SORTED", 10)
    logits = torch.zeros(1, classes, 8, 8)
    logits[0, 0, 3, 3] = value
    target = torch.zeros(1, classes if regions else 1, 8, 8)
    target[..., 4:] = 1
    leaf = logits.requires_grad_()
    loss = LovaszLoss(regions=regions)(leaf, target)
    loss.backward()  # a GPU would end the training where an index is out of range
    assert loss.isnan() or (regions and value == float("inf"))
