"""Losses of the Jaccard index (intersection over union)."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from nnunet_unifiedloss.losses.arguments import check_flag, check_number
from nnunet_unifiedloss.losses.autograd import differentiable_once, of_maps
from nnunet_unifiedloss.losses.base import Options, SegmentationLoss
from nnunet_unifiedloss.losses.overlap import tversky_complement
from nnunet_unifiedloss.losses.view import View

_SORTED = 2**17  # voxels up to which the Lovász loss puts them all in order
_DIGITS = 11  # binary digits of the errors that more voxels are put in order by
_LEVELS = (128 << _DIGITS) + 1  # of float32 up to 2


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
    float16, share their steps; that is a multiple faster and changes the loss by less than 0.05 %.

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
        losses: Tensor = _LovaszExtension.apply(view.errors, view.one_hot)
        present = (view.class_voxels > 0).any(0).to(losses.dtype)
        return ((losses * present).sum(1) / present.sum(1).clamp_min(1)).mean()


class _LovaszExtension(torch.autograd.Function):
    """Σ e·step over the errors (B, G, K, *S) of each class, largest first, (G, K)."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch's own type)
        errors: Tensor,
        masks: Tensor,
    ) -> Tensor:
        batch, groups, classes, *space = errors.shape
        steps_of = _steps_in_order if batch * math.prod(space) <= _SORTED else _steps_by_levels
        steps = torch.empty_like(errors)
        losses = errors.new_empty(groups, classes)
        for g, k in itertools.product(range(groups), range(classes)):
            voxels = errors[:, g, k].flatten()
            step = steps_of(voxels, masks[:, g, k].flatten())
            losses[g, k] = torch.dot(voxels, step)
            steps[:, g, k] = step.view(batch, *space)
        ctx.save_for_backward(steps)
        return losses

    @staticmethod
    @differentiable_once
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, None]:
        (steps,) = ctx.saved_tensors
        return steps * of_maps(grad, steps[0]), None


def _steps_in_order(errors: Tensor, mask: Tensor) -> Tensor:
    """What each voxel adds to the Jaccard loss when it becomes wrong, after those of larger error.

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


def _steps_by_levels(errors: Tensor, mask: Tensor) -> Tensor:
    """As :func:`_steps_in_order`, where errors that agree in their leading digits are one level.

    Of a level the voxels of the mask are the first to become wrong, or the others are; each voxel
    gets the mean of the two. With I and O of them, P − i = r and P + j = u before, and
    v = u + O, that is (1/u + 1/v)/2 inside and (r − I/2)/(uv) outside; a level's steps add up to
    what it adds to the Jaccard loss.
    """
    level = errors.float().view(torch.int32) >> (23 - _DIGITS)
    row = level.add_(mask, alpha=_LEVELS)
    counts = torch.zeros(2 * _LEVELS, dtype=torch.int32, device=mask.device)
    outside, inside = counts.index_add_(0, row, torch.ones_like(row)).view(2, -1).unbind()
    after = len(row) - (outside.cumsum(0, dtype=torch.int32) - outside).to(errors.dtype)  # v
    before = after - outside  # u
    right = inside.cumsum(0, dtype=torch.int32) - inside.to(errors.dtype).mul_(0.5)  # r − I/2
    steps = torch.stack([right, (before + after).mul_(0.5)])
    return steps.div_((before * after).clamp_min_(1)).flatten().index_select(0, row)
