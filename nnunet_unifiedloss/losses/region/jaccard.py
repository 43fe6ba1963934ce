"""Losses of the Jaccard index (intersection over union)."""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor
from typing_extensions import Unpack

from nnunet_unifiedloss.losses.arguments import check_flag, check_number
from nnunet_unifiedloss.losses.autograd import weighted_sum
from nnunet_unifiedloss.losses.base import Options, SegmentationLoss
from nnunet_unifiedloss.losses.overlap import tversky_complement
from nnunet_unifiedloss.losses.view import View

_SORTED = 2**17  # voxels up to which the Lovász loss puts them all in order
_DIGITS = 11  # binary digits of the errors that more voxels are put in order by
_OCTAVES = 32  # below 1, that these digits tell apart: errors below 2**-32 share one level
_LEVELS = (_OCTAVES << _DIGITS) + 1
_SMALLEST = (127 - _OCTAVES) << 23  # bits of that in float32


class JaccardLoss(SegmentationLoss):
    r"""Jaccard loss.

    .. math:: L = 1 - \operatorname{mean}_c \frac{TP + s}{TP + FP + FN + s}

    Args:
        smooth: s ≥ 0.
        include_background: Use the background class too.
        **options: regions, ignore_label, batch_dice, ddp; see :class:`SegmentationLoss`.

    Shape:
        logits (B, C, \*S), target (B, 1, \*S) or (B, \*S), with ``regions=True`` (B, C, \*S);
        returns a scalar.

    Raises:
        TypeError, ValueError: An argument is out of range; see also :class:`SegmentationLoss`.

    Example:
        >>> import torch
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)
        >>> round(JaccardLoss()(logits, target).item(), 4)
        0.5

    References:
        Rahman, Wang: Optimizing intersection-over-union in deep neural networks for image
        segmentation, ISVC 2016, section 3.
    """

    paper = "Rahman 2016, ISVC"
    when = "Intersection over union is the metric."
    when_not = "Alone on tiny structures: noisy, as Dice is."

    def __init__(
        self,
        *,
        smooth: float = 1e-5,
        include_background: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        self.smooth = check_number("smooth", smooth)
        self.include_background = check_flag("include_background", include_background)

    def evaluate(self, view: View) -> Tensor:
        """1 − mean_c Jaccard index, the Tversky index with α = β = 1."""
        return view.mean_over_classes(
            tversky_complement(
                view.counts,
                alpha=1,
                beta=1,
                smooth=self.smooth,
                include_background=self.include_background,
            )
        )


class LovaszLoss(SegmentationLoss):
    r"""Lovász loss: the convex extension of the Jaccard loss.

    .. math:: L = \operatorname{mean}_{c \text{ present}} \sum_i e_{(i)}
        \left[ \Delta_J(\{(1), \dots, (i)\}) - \Delta_J(\{(1), \dots, (i-1)\}) \right], \quad
        e = |y - p|

    (1), (2), … are the voxels of the batch in order of falling error, and Δ_J is the Jaccard loss
    of a set of wrong voxels. All classes that are present in the batch count, the background too.
    In distributed training each rank sorts its own part of the batch. Of more than 131,072 voxels
    (two patches of 41³ have 137,842) errors that agree in 11 binary digits, the precision of
    float16, or are below 2⁻³², share their steps; that is a multiple faster and changes the loss
    by less than 0.05 %, or 10⁻⁹.

    Args:
        **options: regions, ignore_label, batch_dice, ddp; see :class:`SegmentationLoss`.

    Shape:
        logits (B, C, \*S), target (B, 1, \*S) or (B, \*S), with ``regions=True`` (B, C, \*S);
        returns a scalar.

    Raises:
        TypeError, ValueError: See :class:`SegmentationLoss`.

    Example:
        >>> import torch
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)
        >>> round(LovaszLoss()(logits, target).item(), 4)
        0.5

    References:
        Berman et al.: The Lovász-softmax loss, CVPR 2018 (arXiv:1705.08790), equations 8 and 9.
    """

    paper = "Berman 2018, arXiv:1705.08790"
    when = "Fine-tuning for intersection over union after a training with cross entropy."
    when_not = "From scratch alone: voxels far down the order get hardly any gradient."

    def evaluate(self, view: View) -> Tensor:
        """Lovász extension of the Jaccard loss, mean over the classes present and regions."""
        present = (view.class_voxels > 0).any(0).to(view.cross_entropy.dtype)
        weights = present / present.sum(1, keepdim=True).clamp_min(1) / len(present)
        error = view.error.flatten(2)
        if error[:, 0].numel() <= _SORTED:
            masks = view.one_hot.flatten(3)
            in_order = functools.partial(_steps_in_order, masks=masks, weights=weights)
            return weighted_sum(in_order, view.errors.flatten(3))
        known = {"truth": view.truth.flatten(2), "weights": weights}
        if view.num_classes == 2:
            return weighted_sum(functools.partial(_steps_of_two_classes, **known), error)
        by_levels = functools.partial(_steps_by_levels, **known)
        return weighted_sum(by_levels, error, view.others.flatten(3))


@torch.no_grad()
def _steps_in_order(errors: Tensor, masks: Tensor, weights: Tensor) -> tuple[Tensor]:
    """What each voxel adds to the Jaccard losses when it becomes wrong, after those more wrong.

    Args:
        errors: (B, G, K, V).
        masks: The voxels of each class, (B, G, K, V).
        weights: Of the classes' losses, (G, K).
    """
    steps = torch.empty_like(errors)
    for g, k in itertools.product(*map(range, weights.shape)):
        step = _steps_of_class(errors[:, g, k].flatten(), masks[:, g, k].flatten())
        steps[:, g, k] = step.mul_(weights[g, k]).view_as(steps[:, g, k])
    return (steps,)


def _steps_of_class(errors: Tensor, mask: Tensor) -> Tensor:
    """The steps of one class's Jaccard loss.

    With P voxels in the mask, i of them and j others wrong already, the loss is
    1 − (P − i)/(P + j); its steps are written out, since their difference would round them away.
    """
    # The bits of floats ≥ 0 are in the order of the floats, and integers sort several times
    # faster. The lowest bit takes the mask along.
    integer = torch.int64 if errors.dtype == torch.float64 else torch.int32
    bits, order = torch.sort((errors.contiguous().view(integer) << 1).add_(mask))
    inside = bits & 1
    right_inside = inside.cumsum(0, dtype=integer)  # P − i
    wrong = torch.arange(len(inside) - 1, -1, -1, dtype=integer, device=mask.device)
    union = wrong.add_(right_inside).clamp_min_(1).to(errors.dtype)  # P + j = i + j + (P − i)
    step = right_inside.to(errors.dtype).div_(union + 1)
    step = torch.where(inside.bool(), 1, step).div_(union)
    return torch.empty_like(step).scatter_(0, order, step)


@torch.no_grad()
def _steps_by_levels(
    error: Tensor, others: Tensor, truth: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """As :func:`_steps_in_order`, where errors that agree in their leading digits are one level.

    Args:
        error: That of the true class, (B, G, V).
        others: Those of the other classes, 0 for the true one, (B, G, K, V).
        truth: The true class, K where a voxel does not count, (B, G, V).
        weights: Of the classes' losses, (G, K).

    Returns:
        The steps of the true class's errors and those of the others.
    """
    groups, classes = weights.shape
    steps, steps_of_others = torch.empty_like(error), torch.empty_like(others)
    for g in range(groups):
        row = _level(error[:, g]).add_(truth[:, g], alpha=_LEVELS)
        *inside, ignored = _histogram(row, classes + 1)
        table = error.new_zeros(classes + 1, _LEVELS)
        for k in range(classes):
            level = _level(others[:, g, k])
            (outside,) = _histogram(level, 1)
            outside[0] -= inside[k].sum() + ignored.sum()
            outer, inner = _steps_of_levels(outside, inside[k]).mul_(weights[g, k])
            steps_of_others[:, g, k] = _look_up(outer, level)
            table[k] = inner
        steps[:, g] = _look_up(table, row)
    return steps, steps_of_others


@torch.no_grad()
def _steps_of_two_classes(error: Tensor, truth: Tensor, weights: Tensor) -> tuple[Tensor]:
    """As :func:`_steps_by_levels`; what one of two classes misses, the other one claims."""
    steps = torch.empty_like(error)
    for g, (weight, other_weight) in enumerate(weights):
        row = _level(error[:, g]).add_(truth[:, g], alpha=_LEVELS)
        first, second, _ = _histogram(row, 3)
        outer, inner = _steps_of_levels(second, first).mul_(weight)
        other_outer, other_inner = _steps_of_levels(first, second).mul_(other_weight)
        table = torch.stack([inner + other_outer, other_inner + outer, torch.zeros_like(inner)])
        steps[:, g] = _look_up(table, row)
    return (steps,)


def _level(errors: Tensor) -> Tensor:
    """The bits of floats ≥ 0 are in the order of the floats: the leading ones of errors (B, V)."""
    bits = errors.float().clamp_min(2.0**-_OCTAVES).view(torch.int32)
    levels = bits.sub_(_SMALLEST).bitwise_right_shift_(23 - _DIGITS)
    return levels.clamp_(0, _LEVELS - 1)  # the bits of NaN would be out of range


def _histogram(levels: Tensor, rows: int) -> tuple[Tensor, ...]:
    """Number of voxels of each level, for each row of levels."""
    counts = torch.zeros(rows * _LEVELS, dtype=torch.int32, device=levels.device)
    flat = levels.flatten()
    one = counts.new_ones(1).expand(len(flat))
    return counts.index_add_(0, flat, one).view(rows, -1).unbind()


def _look_up(table: Tensor, levels: Tensor) -> Tensor:
    return table.flatten().index_select(0, levels.flatten()).view_as(levels)


def _steps_of_levels(outside: Tensor, inside: Tensor) -> Tensor:
    """The step of a voxel outside and of one inside the mask, for each level, (2, levels).

    Of a level the voxels of the mask are the first to become wrong, or the others are; each voxel
    gets the mean of the two. With I and O of them, P − i = r and P + j = u before, and
    v = u + O, that is (1/u + 1/v)/2 inside and (r − I/2)/(uv) outside; a level's steps add up to
    what it adds to the Jaccard loss.
    """
    right = inside.cumsum(0, dtype=torch.int32) - inside * 0.5  # r − I/2
    union = inside.sum() + outside.sum()
    after = union - (outside.cumsum(0, dtype=torch.int32) - outside).to(right.dtype)  # v
    before = after - outside  # u
    steps = torch.stack([right, (before + after).mul_(0.5)])
    return steps.div_((before * after).clamp_min_(1))
