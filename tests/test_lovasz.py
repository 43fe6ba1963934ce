"""The Lovász loss of large images, whose errors are put in order by their leading digits only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunet_unifiedloss.losses import LovaszLoss
from nnunet_unifiedloss.losses.region import jaccard


def extension(errors, mask):
    """Berman's definition: the Jaccard loss of the k worst voxels, for each k."""
    order = np.argsort(-errors, kind="stable")
    inside = mask[order].astype(float)
    wrong_inside, wrong_outside = np.cumsum(inside), np.cumsum(1 - inside)
    jaccard_loss = 1 - (mask.sum() - wrong_inside) / (mask.sum() + wrong_outside)
    return float((errors[order] * np.diff(jaccard_loss, prepend=0)).sum())


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("scale", [0.1, 1, 10])
def test_large_images_agree_with_the_definition(regions, scale):
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(2, 1, 64, 64, 40, generator=generator) < 0.02
    logits = scale * torch.randn(2, 1 if regions else 2, *target.shape[2:], generator=generator)
    logits[:, -1:] += scale * (2 * target.float() - 1)
    assert target.numel() > jaccard._SORTED
    found = LovaszLoss(regions=regions)(logits, target if regions else target.float())
    margin = logits[:, -1:] if regions else logits[:, 1:] - logits[:, :1]
    probability = torch.sigmoid(margin.double())
    errors = (target.double() - probability).abs().flatten().numpy()
    mask = target.flatten().numpy()
    expected = (extension(errors, mask) + extension(errors, ~mask)) / 2
    assert found.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slopes_by_levels_are_close_to_those_in_order(dtype):
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(100_000, generator=generator) < 0.05
    errors = torch.rand(mask.shape, generator=generator, dtype=dtype) ** 3
    exact, quick = (f(errors, mask) for f in (jaccard._steps_in_order, jaccard._steps_by_levels))
    assert quick.sum().item() == pytest.approx(1, rel=1e-5)
    assert (quick - exact).norm() < 0.01 * exact.norm()


def test_levels_of_one_voxel_give_the_exact_slopes():
    errors, mask = torch.linspace(0.1, 1, 50), torch.arange(50) % 3 == 0
    torch.testing.assert_close(
        jaccard._steps_by_levels(errors, mask), jaccard._steps_in_order(errors, mask)
    )


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.5, 1.0])
def test_equal_errors_share_their_steps(value):
    mask = torch.tensor([True, False, True, False, False])
    steps = jaccard._steps_by_levels(torch.full((5,), value), mask)
    # the mean of the mask's voxels first, 1/2 each and nothing, and last, 1/5 each and 1/5 in all
    expected = torch.where(mask, (1 / 2 + 1 / 5) / 2, (0 + (1 - 2 / 5) / 3) / 2)
    torch.testing.assert_close(steps, expected)


def test_no_voxel_in_the_mask_gives_no_nan():
    assert (
        jaccard._steps_by_levels(torch.zeros(3), torch.zeros(3, dtype=torch.bool)).isfinite().all()
    )
