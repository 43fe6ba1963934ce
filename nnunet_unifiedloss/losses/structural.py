"""Losses of local structure."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import Unpack

from nnunet_unifiedloss.losses.base import Options, SegmentationLoss, check_count, check_number
from nnunet_unifiedloss.losses.distributed import maximum_over_ranks
from nnunet_unifiedloss.losses.overlap import power
from nnunet_unifiedloss.losses.view import View

_SIGMA = 1.5  # of the Gaussian window, in voxels, as in the structural similarity index


class StructuralSimilarityLoss(SegmentationLoss):
    r"""Structural similarity loss: cross entropy where prediction and reference correlate badly.

    .. math:: L = \lambda \operatorname{mean}(CE) + (1 - \lambda) \frac{\sum e f \, CE}{\sum f},
        \quad e = \left| \frac{y - \mu_y + c}{\sigma_y + c} - \frac{p - \mu_p + c}{\sigma_p + c}
        \right|, \quad f = 1[e > \beta \max e]

    μ and σ are mean and standard deviation in a Gaussian window (σ 1.5 voxels) around the voxel,
    computed from the voxels that count; CE = −ln p_t. Sums and maximum are over batch, voxels and
    classes, with ``regions=True`` for each region.

    Args:
        window: Width of the window in voxels, an odd number ≥ 3.
        c: Stabilises the quotients, > 0.
        beta: Share of the largest e below which a voxel is left out, 0 ≤ β < 1.
        weight: λ, share of the plain cross entropy, 0 ≤ λ ≤ 1.
        **options: regions, ignore_label, batch_dice, ddp; see :class:`SegmentationLoss`.

    Shape:
        logits (B, C, \*S), target (B, 1, \*S) or (B, \*S), with ``regions=True`` (B, C, \*S);
        returns a scalar.

    Raises:
        TypeError, ValueError: An argument is out of range; see also :class:`SegmentationLoss`.

    Example:
        >>> import torch
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)
        >>> round(StructuralSimilarityLoss()(logits, target).item(), 4)  # nothing varies: CE / 2
        0.3466

    References:
        Zhao et al.: Correlation maximized structural similarity loss for semantic segmentation,
        2019 (arXiv:1910.08711). The image's border is handled like a border to ignored voxels,
        and σ + c is never below c.
    """

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

    def evaluate(self, view: View) -> Tensor:
        """λ · mean CE + (1 − λ) · Σ e·f·CE / Σ f."""
        difference = self._difference(view)
        with torch.no_grad():
            largest = difference.transpose(0, 1).flatten(1).amax(1)
            largest = maximum_over_ranks(largest) if self.ddp else largest
            threshold = self.beta * largest.view(-1, *(1 for _ in difference.shape[2:]))
            selected = (difference > threshold) & view.counting
        structure = (difference * selected).sum(2) * view.cross_entropy
        chosen = view.over_batch(selected.flatten(2).sum(2).to(structure.dtype))
        similarity = (view.over_batch(structure.flatten(2).sum(2)) / chosen.clamp_min(1)).mean()
        plain = view.mean_over_voxels(view.cross_entropy)
        return self.weight * plain + (1 - self.weight) * similarity

    def _difference(self, view: View) -> Tensor:
        """E of every class, 0 where ignored, (B, G, K, *S)."""
        counting = view.counting.to(view.cross_entropy.dtype)
        norm = self._blur(counting).clamp_min(1e-6)
        reference, prediction = (
            self._standardise(values, counting, norm)
            for values in (view.one_hot.to(norm.dtype), view.probabilities)
        )
        return (reference - prediction).abs() * counting

    def _standardise(self, values: Tensor, counting: Tensor, norm: Tensor) -> Tensor:
        """(v − μ + c)/(σ + c)."""
        centred = (values - 0.5) * counting  # smaller squares, less rounding
        mean = self._blur(centred) / norm
        variance = self._blur(centred.square()) / norm - mean.square()
        noise = 4 * torch.finfo(values.dtype).eps
        deviation = power(variance.where(variance > noise, 0), 0.5)
        return (centred - mean + self.c) / (deviation + self.c)

    def _blur(self, values: Tensor) -> Tensor:
        """Gaussian sums over the window around each voxel of (B, G, K, *S), 0 outside."""
        radius = self.window // 2
        kernel = [math.exp(-(i**2) / (2 * _SIGMA**2)) for i in range(-radius, radius + 1)]
        for axis in range(3, values.ndim):
            pad = [0, 0] * (values.ndim - 1 - axis) + [radius, radius]
            padded = functional.pad(values, pad)
            length = values.shape[axis]
            values = sum(  # type: ignore[assignment]
                weight / sum(kernel) * padded.narrow(axis, start, length)
                for start, weight in enumerate(kernel)
            )
        return values
