"""Losses of local structure."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import Unpack

from nnunet_unifiedloss.losses.arguments import check_count, check_number
from nnunet_unifiedloss.losses.autograd import differentiable_once
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
        counting = view.counting.to(view.cross_entropy.dtype)
        structure, number = _Structure.apply(
            view.probabilities,
            view.one_hot,
            _Window.of(self.window, counting),
            self.c,
            self.beta,
            self.ddp,
        )
        weighted = view.over_batch((structure * view.cross_entropy).flatten(2).sum(2))
        similarity = (weighted / view.over_batch(number).clamp_min(1)).mean()
        plain = view.mean_over_voxels(view.cross_entropy)
        return self.weight * plain + (1 - self.weight) * similarity


class _Window(NamedTuple):
    """Gaussian statistics of the voxels that count around each voxel of (B, G, 1, *S)."""

    weights: tuple[float, ...]
    counting: Tensor
    norm: Tensor

    @classmethod
    def of(cls, width: int, counting: Tensor) -> _Window:
        weights = tuple(math.exp(-(i**2) / (2 * _SIGMA**2)) for i in range(width // 2 + 1))
        norm = window_sum(counting, weights)
        return cls(weights, counting, norm.clamp_min_(weights[-1] ** 3).reciprocal_())

    def part(self, samples: slice) -> _Window:
        return _Window(self.weights, self.counting[samples], self.norm[samples])

    def sum(self, values: Tensor) -> Tensor:
        """Σ weights · values / Σ weights of what counts; the values are 0 where ignored."""
        return window_sum(values, self.weights).mul_(self.norm)

    def statistics(self, centred: Tensor, squares: float | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation; a variance that is nothing but rounding is 0."""
        mean = self.sum(centred)
        second = mean.new_full((), squares) if squares else self.sum(centred.square())
        variance = second - mean.square()
        noise = 4 * torch.finfo(variance.dtype).eps
        return mean, functional.threshold(variance, noise, 0.0, inplace=True).sqrt_()


class _Structure(torch.autograd.Function):
    """Σ_k e·f, (B, G, *S), and the number of voxels and classes of each f, (B, G)."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch's own type)
        probabilities: Tensor,
        truth: Tensor,
        window: _Window,
        c: float,
        beta: float,
        over_ranks: bool,
    ) -> tuple[Tensor, Tensor]:
        signed = torch.empty_like(probabilities)  # e with its sign
        for part in parts(signed):
            around = window.part(part[0])
            values, reference = (_centred(maps[part], around) for maps in (probabilities, truth))
            difference = _standardised(reference, *around.statistics(reference, squares=0.25), c)
            difference -= _standardised(values, *around.statistics(values), c)
            signed[part] = difference.mul_(around.counting)
        lowest, highest = signed.flatten(2).aminmax(dim=2)
        largest = torch.maximum(-lowest, highest).amax(0, keepdim=True)
        largest = maximum_over_ranks(largest) if over_ranks else largest
        threshold = (beta * largest).view(1, -1, *(1 for _ in signed.shape[2:]))
        structure = signed.new_zeros(*signed.shape[:2], *signed.shape[3:])
        number = signed.new_zeros(signed.shape[:2])
        for part in parts(signed):
            difference = signed[part].abs()
            selected = difference > threshold[:, part[1]]
            structure[part[:2]] += difference.mul_(selected).sum(2)
            number[part[:2]] += selected.view(torch.uint8).flatten(2).sum(2, dtype=torch.int32)
            signed[part].mul_(selected)  # from now on e·f with its sign
        ctx.c, ctx.weights = c, window.weights
        ctx.save_for_backward(probabilities, signed, window.counting, window.norm)
        ctx.mark_non_differentiable(number)
        return structure, number

    @staticmethod
    @differentiable_once
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
        _number: None,
    ) -> tuple[Tensor, None, None, None, None, None]:
        probabilities, signed, counting, norm = ctx.saved_tensors
        window = _Window(ctx.weights, counting, norm)
        slopes = torch.empty_like(signed)
        for part in parts(signed):
            around = window.part(part[0])
            slope = signed[part].sign().mul_(grad[part[:2]][:, :, None]).neg_()
            slopes[part] = _slope(slope, _centred(probabilities[part], around), ctx.c, around)
        return slopes, None, None, None, None, None


def _centred(values: Tensor, window: _Window) -> Tensor:
    """Values less ½: their squares are smaller, and so is the rounding of these."""
    return (values.to(window.counting.dtype) - 0.5).mul_(window.counting)


def _slope(slope: Tensor, centred: Tensor, c: float, window: _Window) -> Tensor:
    """The slope of the standardised values, given that of what is computed from them."""
    mean, deviation = window.statistics(centred)
    standardised = _standardised(centred, mean, deviation, c)
    slope = slope / (deviation + c)
    # by way of the variance, whose root has a bounded slope where there is none
    noise = 2 * torch.finfo(centred.dtype).eps ** 0.5
    by_variance = standardised.mul_(slope).mul_(-0.5).div_(deviation.clamp_min_(noise))
    by_mean = by_variance.mul(mean).mul_(-2).sub_(slope)
    slope += window_sum(by_mean.mul_(window.norm), window.weights)
    slope += window_sum(by_variance.mul_(window.norm), window.weights).mul_(centred).mul_(2)
    return slope.mul_(window.counting)


def _standardised(values: Tensor, mean: Tensor, deviation: Tensor, c: float) -> Tensor:
    return (values - mean).add_(c).div_(deviation + c)
