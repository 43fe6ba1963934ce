"""The structural similarity loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import Unpack

from nnunet_unifiedloss.losses.base import Options, SegmentationLoss
from nnunet_unifiedloss.losses.checks import check_count, check_number
from nnunet_unifiedloss.losses.distributed import maximum_over_ranks
from nnunet_unifiedloss.losses.functional import shift
from nnunet_unifiedloss.losses.probabilities import Batch, per_voxel

SIGMA = 1.5  # of the Gaussian window, in voxels, as in the structural similarity index


class StructuralSimilarityLoss(SegmentationLoss):
    r"""Structural similarity loss: cross entropy where prediction and reference correlate badly.

    .. math:: L = \lambda \operatorname{mean}(CE) + (1 - \lambda) \frac{\sum e f \, CE}{\sum f},
        \quad e = \left| \frac{y - \mu_y + c}{\sigma_y + c} - \frac{p - \mu_p + c}{\sigma_p + c}
        \right|, \quad f = 1[e > \beta \max e]

    μ and σ are mean and standard deviation in a Gaussian window (σ 1.5 voxels) around the voxel,
    computed from the voxels that count; CE = −ln p_t. Sums and maximum are over batch, voxels and
    classes, with ``regions=True`` for each region. The loss jumps where f changes.

    Args:
        window: Width of the window in voxels, an odd number ≥ 3.
        c: Stabilises the quotients, > 0.
        beta: Share of the largest e below which a voxel is left out, 0 ≤ β < 1.
        weight: λ, share of the plain cross entropy, 0 ≤ λ ≤ 1.

    Example:
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)
        >>> round(StructuralSimilarityLoss()(logits, target).item(), 4)  # nothing varies: CE / 2
        0.3466

    References:
        Zhao et al.: Correlation maximized structural similarity loss for semantic segmentation,
        2019 (arXiv:1910.08711). The image's border is handled like a border to ignored voxels,
        and σ + c is never below c.
    """

    family = "structural"
    paper = "Zhao 2019, arXiv:1910.08711"
    when = "Thin or textured structures, where neighbours should agree."
    when_not = "Large flat objects: only their outline gets the extra weight."

    def __init__(
        self,
        *,
        window: int = 3,
        c: float = 0.01,
        beta: float = 0.1,
        weight: float = 0.5,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        self.window = check_count("window", window)
        if window < 3 or window % 2 == 0:
            raise ValueError(f"window: must be an odd number >= 3, got {window}")
        self.c = check_number("c", c, above=True)
        self.beta = check_number("beta", beta, maximum=1, below=True)
        self.weight = check_number("weight", weight, maximum=1)

    def evaluate(self, batch: Batch) -> Tensor:
        """λ · mean CE + (1 − λ) · Σ e·f·CE / Σ f."""
        reference, prediction = self._standardise(batch)
        e = (reference - prediction).abs() * batch.counted[:, :, None]
        f = e > per_voxel(self.beta * self._largest(e), e[0])
        weighted = (e * f).sum(2) * batch.cross_entropy
        selected = batch.over_batch(f.flatten(2).sum(2).to(e.dtype))
        similarity = batch.over_batch(weighted.flatten(2).sum(2)) / selected.clamp_min(1)
        plain = batch.mean_over_voxels(batch.cross_entropy)
        return self.weight * plain + (1 - self.weight) * similarity.mean()

    def _standardise(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(v − μ + c) / (σ + c) of reference and prediction, (B, G, K, *S) each."""
        counted = batch.counted[:, :, None].to(batch.error.dtype)
        total = window_sum(counted, self.window).clamp_min(1)  # where a voxel counts, it is ≥ 1
        standardised = []
        for values in (batch.one_hot.to(total.dtype), batch.probabilities):
            values = (values - 0.5) * counted  # around 0 the variance keeps more digits
            sums = window_sum(torch.cat([values, values.square()], 2), self.window)
            mean, square = (sums / total).chunk(2, 2)
            deviation = safe_sqrt(square - mean.square())
            standardised.append((values - mean + self.c) / (deviation + self.c))
        return standardised[0], standardised[1]

    def _largest(self, e: Tensor) -> Tensor:
        """The largest e of each group, (G,)."""
        largest = e.detach().amax((0, *range(2, e.ndim)))
        return maximum_over_ranks(largest) if self.ddp else largest


def safe_sqrt(variance: Tensor) -> Tensor:
    """Square root, and 0 with gradient 0 where a variance is nothing but rounding error."""
    rounding = variance <= 4 * torch.finfo(variance.dtype).eps
    return torch.where(rounding, 0, torch.where(rounding, 1, variance).sqrt())


def window_sum(values: Tensor, width: int) -> Tensor:
    """Gaussian-weighted sum over the window around each voxel of (B, G, K, *S), 0 outside.

    The weight of the nearest voxels is 1, so that of the voxel itself is larger.
    """
    for axis in range(3, values.ndim):
        total = math.exp(1 / (2 * SIGMA**2)) * values
        for by in range(1, min(width // 2, values.shape[axis] - 1) + 1):
            neighbours = shift(values, axis, by) + shift(values, axis, -by)
            total = torch.add(total, neighbours, alpha=math.exp((1 - by**2) / (2 * SIGMA**2)))
        values = total
    return values
