"""Losses of the Jaccard index (intersection over union)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import Unpack

from nnunet_unifiedloss.losses.base import Options, SegmentationLoss, check_flag, check_number
from nnunet_unifiedloss.losses.overlap import tversky_complement
from nnunet_unifiedloss.losses.view import View


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
    In distributed training each rank sorts its own part of the batch.

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
        maps = (values.transpose(0, 1).flatten(3) for values in (view.errors, view.one_hot))
        groups = zip(*(values.unbind(0) for values in maps), strict=True)  # (B, K, voxels) each
        losses = torch.stack([_extensions(errors, truth) for errors, truth in groups])
        present = (view.class_voxels.sum(0) > 0).to(losses.dtype)
        return ((losses * present).sum(1) / present.sum(1).clamp_min(1)).mean()


def _extensions(errors: Tensor, truth: Tensor) -> Tensor:
    """The Lovász extension for each class, (K,), from (B, K, voxels)."""
    pairs = zip(errors.unbind(1), truth.unbind(1), strict=True)
    return torch.stack([_LovaszExtension.apply(e.flatten(), y.flatten()) for e, y in pairs])


class _LovaszExtension(torch.autograd.Function):
    """Σ e·step over the errors (voxels,) of one class, largest first."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch's own type)
        errors: Tensor,
        mask: Tensor,
    ) -> Tensor:
        # The bits of floats ≥ 0 are in the order of the floats, and integers sort several times
        # faster. The lowest bit takes the mask along.
        integer = torch.int64 if errors.dtype == torch.float64 else torch.int32
        bits, order = torch.sort((errors.contiguous().view(integer) << 1).add_(mask))
        steps = _jaccard_steps(bits & 1, errors.dtype)
        ctx.save_for_backward(order, steps)
        return ((bits >> 1).view(errors.dtype) * steps).sum()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, None]:
        order, steps = ctx.saved_tensors
        return torch.empty_like(steps).scatter_(0, order, steps * grad), None


def _jaccard_steps(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What each voxel adds to the Jaccard loss when it becomes wrong, after all that follow it.

    With P voxels in the mask, i of them and j others wrong already, the loss is
    1 − (P − i)/(P + j); its steps are written out, since their difference would round them away.
    """
    right_inside = mask.cumsum(0, dtype=mask.dtype)  # P − i
    wrong = torch.arange(len(mask) - 1, -1, -1, dtype=mask.dtype, device=mask.device)
    union = wrong.add_(right_inside).clamp_min_(1).to(dtype)  # P + j = i + j + (P − i)
    step_outside = right_inside.to(dtype).div_(union + 1)
    inside = mask.to(dtype)
    return step_outside.lerp_(torch.ones_like(inside), inside).div_(union)
