"""The loss of the Jaccard index (intersection over union)."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from nnunet_unifiedloss.losses.arguments import check_flag, check_number
from nnunet_unifiedloss.losses.base import Options, SegmentationLoss
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
