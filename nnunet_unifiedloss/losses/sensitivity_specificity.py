"""The sensitivity-specificity loss."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from nnunet_unifiedloss.losses.base import Options, SegmentationLoss
from nnunet_unifiedloss.losses.checks import check_flag, check_number
from nnunet_unifiedloss.losses.functional import safe_divide
from nnunet_unifiedloss.losses.probabilities import Batch


class SensitivitySpecificityLoss(SegmentationLoss):
    r"""Sensitivity-specificity loss: squared errors inside and outside of each class.

    .. math:: L = \operatorname{mean}_c \left[ w \frac{\sum (y-p)^2 y}{\sum y + s}
        + (1-w) \frac{\sum (y-p)^2 (1-y)}{\sum (1-y) + s} \right]

    Args:
        weight: w, share of the sensitivity, 0 ≤ w ≤ 1.
        smooth: s ≥ 0.
        include_background: Use the background class too.

    Example:
        >>> import torch
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)
        >>> target[..., :1] = 1
        >>> round(SensitivitySpecificityLoss()(logits, target).item(), 4)
        0.25

    References:
        Brosch et al.: Deep convolutional encoder networks for multiple sclerosis lesion
        segmentation, MICCAI 2015, equation 5.
    """

    family = "region"
    paper = "Brosch 2015, MICCAI"
    when = "Lesions in a large background, where sensitivity and specificity are the goal."
    when_not = "Many organs: unstable (Ma 2021)."

    def __init__(
        self,
        *,
        weight: float = 0.05,
        smooth: float = 1e-5,
        include_background: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        self.weight = check_number("weight", weight, maximum=1)
        self.smooth = check_number("smooth", smooth)
        self.include_background = check_flag("include_background", include_background)

    def evaluate(self, batch: Batch) -> Tensor:
        """Mean over classes of the weighted mean squared errors inside and outside."""
        missed = batch.over_samples(batch.sum_by_class(batch.error.square()))
        invented = batch.over_samples(batch.others.square().flatten(3).sum(3))
        inside = batch.over_samples(batch.class_voxels)
        outside = inside.sum(2, keepdim=True) - inside
        sensitivity = safe_divide(missed, inside + self.smooth)
        specificity = safe_divide(invented, outside + self.smooth)
        loss = self.weight * sensitivity + (1 - self.weight) * specificity
        return batch.mean_over_classes(loss if self.include_background else loss[..., 1:])
