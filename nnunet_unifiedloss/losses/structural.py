"""Losses of local structure."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import Unpack

from nnunet_unifiedloss.losses.arguments import check_count, check_number
from nnunet_unifiedloss.losses.autograd import differentiable_once, of_maps, probability
from nnunet_unifiedloss.losses.base import Options, SegmentationLoss
from nnunet_unifiedloss.losses.distributed import maximum_over_ranks
from nnunet_unifiedloss.losses.neighbourhood import parts, window_sum
from nnunet_unifiedloss.losses.view import View

_SIGMA = 1.5  # of the Gaussian window, in voxels, as in the structural similarity index


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
        others = view.others
        structure, number = _Structure.apply(
            others,
            view.cross_entropy,
            view.one_hot[:, :, -others.shape[2] :].contiguous().view(torch.uint8),
            _Window.of(self.window, view),
            self.c,
            self.beta,
            self.ddp,
        )
        weighted = view.over_batch((structure * view.cross_entropy).flatten(2).sum(2))
        similarity = (weighted / view.over_batch(number).clamp_min(1)).mean()
        plain = view.mean_over_voxels(view.cross_entropy)
        return self.weight * plain + (1 - self.weight) * similarity


class _Window(NamedTuple):
    """The Gaussian window around each voxel of maps (B, G, K, *S), over the voxels that count."""

    weights: tuple[float, ...]  # from the centre outwards, that of the next voxel is 1
    norm: Tensor  # 1 / Σ weights of the voxels that count
    counting: Tensor | None  # 1 where a voxel counts, else 0; None where all do

    @classmethod
    def of(cls, width: int, view: View) -> _Window:
        weights = tuple(math.exp((1 - i**2) / (2 * _SIGMA**2)) for i in range(width // 2 + 1))
        counting = view.counting.to(view.cross_entropy.dtype)
        counting = counting[:1] if view.ignored is None else counting
        norm = window_sum(counting, weights).clamp_min_(1).reciprocal_()
        return cls(weights, norm, None if view.ignored is None else counting)

    def part(self, samples: slice) -> _Window:
        if self.counting is None:
            return self
        return _Window(self.weights, self.norm[samples], self.counting[samples])

    def sum(self, values: Tensor) -> Tensor:
        """Σ weights · values around each voxel; the values are 0 where a voxel does not count."""
        return window_sum(values, self.weights)

    def mask(self, values: Tensor) -> Tensor:
        """In place: 0 where a voxel does not count."""
        return values if self.counting is None else values.mul_(self.counting)

    def statistics(self, values: Tensor, squares: float | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation; a variance that is nothing but rounding is 0."""
        mean = self.sum(values).mul_(self.norm)
        if squares is None:
            variance = self.sum(values.square()).mul_(self.norm).sub_(mean.square())
        else:
            variance = mean.square().neg_().add_(squares)
        noise = 4 * torch.finfo(variance.dtype).eps
        return mean, functional.threshold(variance, noise, 0.0, inplace=True).sqrt_()


class _Structure(torch.autograd.Function):
    """Σ_k e·f, (B, G, *S), and the number of voxels and classes of each f, (B, G).

    The probabilities are those of a view: of the others, and that of the true class by its CE.
    Statistics are those of values less ½: their squares are smaller, and so is the rounding. Of
    two classes a view has the second one; the first one's values are the same but for the sign.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch's own type)
        others: Tensor,
        cross_entropy: Tensor,
        truth: Tensor,
        window: _Window,
        c: float,
        beta: float,
        over_ranks: bool,
    ) -> tuple[Tensor, Tensor]:
        batch, groups, classes, *space = others.shape
        mean, deviation = torch.empty_like(others), torch.empty_like(others)
        difference = others.new_empty(batch, groups, max(classes, 2), *space)
        p_t = probability(cross_entropy)[:, :, None]
        for part in parts(others):
            around = window.part(part[0])
            is_truth = truth[part].to(others.dtype)
            values = around.mask(is_truth - 0.5)
            average, spread = around.statistics(values, squares=0.25)
            reference = _standardised(values, average, spread, c)
            values = around.mask(is_truth.mul_(p_t[part[:2]]).add_(others[part]).sub_(0.5))
            mean[part], deviation[part] = around.statistics(values)
            prediction = _standardised(values, mean[part], deviation[part], c)
            difference[part] = around.mask(prediction.sub_(reference))
            if classes == 1:
                first = (deviation[part] + c).reciprocal_().sub_((spread + c).reciprocal_())
                difference[part[:2]][:, :, 1:] = around.mask(first.mul_(2 * c).sub_(prediction))
        threshold = beta * _largest(difference, over_ranks)
        structure = torch.zeros_like(cross_entropy)
        number = structure.new_zeros(structure.shape[:2])
        sign = torch.empty_like(difference, dtype=torch.int8)  # the slope of e·f by prediction
        for part in parts(difference):
            size = difference[part].abs()
            selected = size.clone().gt_(threshold[:, part[1]])
            number[part[:2]] += selected.flatten(2).sum(2)
            structure[part[:2]] += size.mul_(selected).sum(2)
            sign[part] = difference[part].sign_().mul_(selected)
        ctx.c, ctx.weights = c, window.weights
        kept = others, cross_entropy, truth, sign, mean, deviation, window.norm, window.counting
        ctx.save_for_backward(*kept)
        ctx.mark_non_differentiable(number)
        return structure, number

    @staticmethod
    @differentiable_once
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
        _number: None,
    ) -> tuple[Tensor, Tensor, None, None, None, None, None]:
        others, cross_entropy, truth, sign, mean, deviation, *rest = ctx.saved_tensors
        window = _Window(ctx.weights, *rest)
        grad, p_t = grad[:, :, None], probability(cross_entropy)[:, :, None]
        slopes, slope_of_truth = torch.empty_like(others), torch.zeros_like(p_t)
        for part in parts(others):
            around = window.part(part[0])
            is_truth = truth[part].to(others.dtype)
            values = around.mask((is_truth * p_t[part[:2]]).add_(others[part]).sub_(0.5))
            own = sign[part[:2]] if others.shape[2] == 1 else sign[part]
            slope = total = own.to(others.dtype).mul_(grad[part[:2]])
            if others.shape[2] == 1:
                second, first = slope.split(1, 2)
                slope, total = second - first, second + first
            slope = _slope(slope, total, values, mean[part], deviation[part], ctx.c, around)
            slopes[part] = slope
            slope_of_truth[part[:2]] += slope.mul_(is_truth).sum(2, keepdim=True)
        return slopes, slope_of_truth.mul_(p_t).neg_()[:, :, 0], None, None, None, None, None


def _standardised(values: Tensor, mean: Tensor, deviation: Tensor, c: float) -> Tensor:
    return (values - mean).add_(c).div_(deviation + c)


def _largest(difference: Tensor, over_ranks: bool) -> Tensor:
    """The largest absolute value of each group, shaped to be compared with the maps."""
    maps = difference.flatten(3)
    largest = torch.maximum(maps.amax(3), -maps.amin(3)).amax((0, 2), keepdim=True)
    return of_maps(maximum_over_ranks(largest) if over_ranks else largest, difference)


def _slope(
    slope: Tensor,
    total: Tensor,
    values: Tensor,
    mean: Tensor,
    deviation: Tensor,
    c: float,
    window: _Window,
) -> Tensor:
    """The slope of the values, given that of (values − mean) / (deviation + c) and c / (…)."""
    spread = deviation + c
    # by way of the variance, whose root has a bounded slope where there is none; times −2
    noise = 2 * torch.finfo(values.dtype).eps ** 0.5
    by_variance = (values - mean).mul_(slope).add_(total, alpha=c).div_(spread).div_(spread)
    by_variance /= deviation.clamp_min(noise)
    slope = slope.div_(spread)
    slope += window.sum((by_variance * mean).sub_(slope).mul_(window.norm))  # by way of the mean
    slope -= window.sum(by_variance.mul_(window.norm)).mul_(values)
    return window.mask(slope)
