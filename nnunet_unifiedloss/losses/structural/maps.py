"""Local structure of whole maps (B, G, K, *S), for every device, dtype and compiler.

Values are probabilities less ½: their squares are smaller, and so is the rounding. Of two classes
there is one map, of the second one; the first one's values are the same but for the sign.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_unifiedloss.losses.autograd import of_maps
from nnunet_unifiedloss.losses.neighbourhood import SPATIAL
from nnunet_unifiedloss.losses.view import View

SIGMA = 1.5  # of the Gaussian window, in voxels, as in the structural similarity index


class Window(NamedTuple):
    """The Gaussian window around each voxel, over the voxels that count."""

    weights: tuple[float, ...]  # from the centre outwards, that of the next voxel is 1
    norm: Tensor  # 1 / Σ weights of the voxels that count, 0 for the others, (B or 1, 1, 1, *S)
    all_count: bool

    @classmethod
    def of(cls, width: int, view: View) -> Window:
        """The window of a width for a view's maps."""
        weights = tuple(math.exp((1 - i**2) / (2 * SIGMA**2)) for i in range(width // 2 + 1))
        counting = view.counting.to(view.cross_entropy.dtype)
        if view.ignored is not None:
            norm = window_sum(counting, weights).clamp_min_(1).reciprocal_().mul_(counting)
            return cls(weights, norm, all_count=False)
        axes = [counting.new_ones(1, 1, 1, size) for size in counting.shape[SPATIAL:]]
        norm, *others = (window_sum(axis, weights).reciprocal_() for axis in axes)
        for other in others:
            norm = norm[..., None] * other.view(-1)
        return cls(weights, norm, all_count=True)

    def mask(self, values: Tensor) -> Tensor:
        """In place: 0 where a voxel does not count."""
        return values if self.all_count else values.mul_(self.norm > 0)

    def statistics(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation; a variance that is nothing but rounding is 0."""
        mean = window_sum(values, self.weights).mul_(self.norm)
        variance = window_sum(values.square(), self.weights).mul_(self.norm).sub_(mean.square())
        least = least_variance(variance.dtype)
        return mean, functional.threshold(variance, least, 0.0, inplace=True).sqrt_()


class Probabilities(NamedTuple):
    """The probabilities of a view, those of the true class apart."""

    others: Tensor  # of every class but the true one, (B, G, K, *S)
    p_t: Tensor  # (B, G, *S)
    truth: Tensor  # index of the true class, (B, G, *S)


def least_variance(dtype: torch.dtype) -> float:
    """A smaller variance is nothing but rounding."""
    return float(4 * torch.finfo(dtype).eps)


def first_class(others: Tensor) -> int:
    """The class of the first map: 1 of two classes, whose only map it is."""
    return 1 if others.shape[2] == 1 else 0


def differences(
    probabilities: Probabilities, window: Window, c: float
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Standardised prediction less standardised reference.

    Returns:
        The differences (B, G, classes, *S), of two classes the second one first; the largest
        absolute one of each group, (G,); what was computed on the way, for :func:`slopes`.
    """
    is_truth = _is_truth(probabilities)
    values = window.mask(is_truth - 0.5)
    reference_mean, reference_deviation = window.statistics(values)
    difference = _standardised(values, reference_mean, reference_deviation, c).neg_()
    values = is_truth.mul_(probabilities.p_t[:, :, None]).add_(probabilities.others).sub_(0.5)
    values = window.mask(values)
    mean, deviation = window.statistics(values)
    difference += _standardised(values, mean, deviation, c)
    if first_class(probabilities.others):
        first = (deviation + c).reciprocal_().sub_((reference_deviation + c).reciprocal_())
        difference = torch.cat([difference, first.mul_(2 * c).sub_(difference)], 2)
    flat = window.mask(difference).flatten(3)
    largest = torch.maximum(flat.amax(3), -flat.amin(3)).amax((0, 2))
    return difference, largest, (mean, deviation)


def select(difference: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum and number of the absolute differences above a threshold (G,), and their signs.

    Returns:
        Σ over the classes (B, G, *S), number over voxels and classes (B, G), signs (B, G, K, *S).
    """
    size = difference.abs()
    selected = size > of_maps(threshold, difference[0, :, 0])[:, None]
    sign = difference.sign().mul_(selected).to(torch.int8)
    number = selected.flatten(2).sum(2).to(difference.dtype)
    return size.mul_(selected).sum(2), number, sign


def slopes(
    grad: Tensor,
    sign: Tensor,
    probabilities: Probabilities,
    window: Window,
    c: float,
    kept: tuple[Tensor, ...],
    _spare: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The slopes of all probabilities, given that of the sum of :func:`select`.

    Returns:
        For the classes (B, G, K, *S), with the true one; for the true one (B, G, *S).
    """
    mean, deviation = kept
    is_truth = _is_truth(probabilities)
    values = (is_truth * probabilities.p_t[:, :, None]).add_(probabilities.others).sub_(0.5)
    values = window.mask(values)
    slope = total = sign * grad[:, :, None]
    if first_class(probabilities.others):
        second, first = slope.chunk(2, 2)
        slope, total = second - first, second + first
    # of (values − mean + c) / (deviation + c): slope for the values, total for c
    spread = deviation + c
    # by way of the variance, whose root has a bounded slope where there is none; times −2
    by_variance = (values - mean).mul_(slope).add_(total, alpha=c).div_(spread).div_(spread)
    by_variance /= deviation.clamp_min(least_variance(deviation.dtype) ** 0.5)
    slope = slope / spread
    by_mean = (by_variance * mean).sub_(slope).mul_(window.norm)
    slope += window_sum(by_mean, window.weights)
    slope -= window_sum(by_variance.mul_(window.norm), window.weights).mul_(values)
    slope = window.mask(slope)
    return slope, is_truth.mul_(slope).sum(2)


def window_sum(values: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Σ weights[|shift|] · values along every axis in turn, 0 outside of the image.

    The weights go from the centre outwards; that of the next voxel is 1.
    """
    margin = len(weights) - 1
    total = functional.pad(values, (margin,) * 2 * (values.ndim - SPATIAL))
    for axis in range(SPATIAL, values.ndim):
        size = values.shape[axis]
        shifted = [total.narrow(axis, start, size) for start in range(2 * margin + 1)]
        total = shifted[margin - 1] + shifted[margin + 1]
        total.add_(shifted[margin], alpha=weights[0])
        for shift, weight in enumerate(weights[2:], 2):
            total.add_(shifted[margin - shift], alpha=weight)
            total.add_(shifted[margin + shift], alpha=weight)
    return total


def _is_truth(probabilities: Probabilities) -> Tensor:
    """1 for the true class, else 0, (B, G, K, *S)."""
    others, truth = probabilities.others, probabilities.truth
    classes = torch.arange(others.shape[2], dtype=truth.dtype, device=truth.device)
    classes += first_class(others)
    return (truth[:, :, None] - of_maps(classes, truth[0])).logical_not().to(others.dtype)


def _standardised(values: Tensor, mean: Tensor, deviation: Tensor, c: float) -> Tensor:
    return (values - mean).add_(c).div_(deviation + c)
