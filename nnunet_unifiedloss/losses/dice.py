"""Losses of the Dice score, and of its parts sensitivity and specificity."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from nnunet_unifiedloss.losses.base import Options, OverlapLoss, OverlapOptions
from nnunet_unifiedloss.losses.checks import check_number
from nnunet_unifiedloss.losses.functional import safe_divide, tversky_loss
from nnunet_unifiedloss.losses.probabilities import Batch


class DiceLoss(OverlapLoss):
    r"""Dice loss.

    .. math:: L = 1 - \operatorname{mean}_c \frac{2 TP + s}{2 TP + FP + FN + s}

    Example:
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)
        >>> round(DiceLoss()(logits, target).item(), 4)
        0.3333

    References:
        Milletari et al.: V-Net, 3DV 2016 (arXiv:1606.04797), section 3, with the linear
        denominator of Drozdzal et al.: The importance of skip connections in biomedical image
        segmentation, 2016 (arXiv:1608.04117).
    """

    paper = "Milletari 2016, arXiv:1606.04797; Drozdzal 2016, arXiv:1608.04117"
    when = "The metric itself; noisy alone, better in a compound."
    when_not = "Alone on tiny or absent structures: single voxels make it jump."

    def evaluate(self, batch: Batch) -> Tensor:
        """1 − mean_c Dice."""
        return batch.mean_over_classes(self.loss_by_class(batch))

    def loss_by_class(self, batch: Batch) -> Tensor:
        """1 − Dice of each sample, group and class in use, (B, G, K)."""
        return tversky_loss(self.counts(batch), alpha=0.5, beta=0.5, smooth=self.smooth / 2)


class LogCoshDiceLoss(DiceLoss):
    r"""Log-cosh Dice loss: the Dice loss, smoothed near its optimum.

    .. math:: L = \ln \cosh L_\text{Dice}

    Example:
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)
        >>> round(LogCoshDiceLoss()(logits, target).item(), 4)
        0.0546

    References:
        Jadon: A survey of loss functions for semantic segmentation, CIBCB 2020 (arXiv:2006.14822),
        the log-cosh Dice loss.
    """

    paper = "Jadon 2020, arXiv:2006.14822"
    when = "Dice trains well but jumps about at the end."
    when_not = "Early or small gradients: its gradient vanishes with the loss."

    def evaluate(self, batch: Batch) -> Tensor:
        """Ln cosh of the Dice loss, mean over regions."""
        half = batch.mean_of_groups(self.loss_by_class(batch)) / 2
        # ln cosh x = ln(1 + 2 sinh² (x/2)) keeps the digits of a small x
        return torch.log1p(2 * half.sinh().square()).mean()


class GeneralizedDiceLoss(OverlapLoss):
    r"""Generalised Dice loss: classes weighted by the inverse of their squared volume.

    .. math:: L = 1 - \frac{2 \sum_c w_c TP_c + s}{\sum_c w_c (2 TP + FP + FN)_c + s}, \quad
        w_c = 1 / (\sum y_c)^2

    The loss is the mean over samples. An absent class gets the largest finite weight of its sample,
    so that a false positive of it has a cost and the other classes still count. The weights are
    divided by the sample's largest before s is added, because 1e-5 is large beside 1/V² of a
    structure of V voxels: in a patch of 128³, half of it foreground and all voxels wrong, the loss
    would be 0.28 instead of 1.

    Example:
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)
        >>> target[..., :1] = 1
        >>> round(GeneralizedDiceLoss()(logits, target).item(), 4)
        0.625

    References:
        Sudre et al.: Generalised Dice overlap as a deep learning loss function for highly
        unbalanced segmentations, DLMIA 2017 (arXiv:1707.03237), section 2.1; absent classes are
        handled as MONAI does it.
    """

    paper = "Sudre 2017, arXiv:1707.03237"
    when = "Two classes of very different size."
    when_not = "Many organs: unstable (Ma 2021), as tiny classes take nearly all the weight."

    def __init__(
        self, *, smooth: float = 1e-5, include_background: bool = True, **options: Unpack[Options]
    ) -> None:
        super().__init__(smooth=smooth, include_background=include_background, **options)

    def evaluate(self, batch: Batch) -> Tensor:
        """Mean over samples of the generalised Dice loss."""
        return batch.mean_over_classes(self.loss_by_sample(batch))

    def loss_by_sample(self, batch: Batch) -> Tensor:
        """1 − generalised Dice of each sample and group, (B, G, 1)."""
        tp, fp, fn = self.counts(batch)
        weights = self._class_weights(batch)
        errors = (weights * (fp + fn)).sum(-1, keepdim=True)
        return safe_divide(errors, errors + 2 * (weights * tp).sum(-1, keepdim=True) + self.smooth)

    def _class_weights(self, batch: Batch) -> Tensor:
        """w_c divided by the largest of the sample, (B, G, K)."""
        volume = batch.over_samples(batch.class_voxels)
        volume = volume if self.include_background else volume[..., 1:]
        smallest = torch.where(volume > 0, volume, torch.inf).amin(-1, keepdim=True)
        return torch.where(volume > 0, (smallest / volume).square(), 1)


class PenaltyGeneralizedDiceLoss(GeneralizedDiceLoss):
    r"""Generalised Dice loss with a penalty on errors.

    .. math:: L = \frac{L_\text{GD}}{1 + k (1 - L_\text{GD})}

    Args:
        k: Strength of the penalty, ≥ 0; 0 is the generalised Dice loss.

    Example:
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)
        >>> target[..., :1] = 1
        >>> round(PenaltyGeneralizedDiceLoss(k=1)(logits, target).item(), 4)
        0.4545

    References:
        Yang et al.: Major vessel segmentation on X-ray coronary angiography using deep networks
        with a novel penalty loss function, MIDL 2019.
    """

    paper = "Yang 2019, MIDL"
    when = "As GeneralizedDice, with more weight on large errors."
    when_not = "Many organs, as GeneralizedDice."

    def __init__(
        self,
        *,
        k: float = 2.5,
        smooth: float = 1e-5,
        include_background: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(smooth=smooth, include_background=include_background, **options)
        self.k = check_number("k", k)

    def evaluate(self, batch: Batch) -> Tensor:
        """L / (1 + k(1 − L)) of the generalised Dice loss L, mean over regions."""
        loss = batch.mean_of_groups(self.loss_by_sample(batch))
        return (loss / (1 + self.k * (1 - loss))).mean()


class SensitivitySpecificityLoss(OverlapLoss):
    r"""Sensitivity-specificity loss: squared errors inside and outside of each class.

    .. math:: L = \operatorname{mean}_c \left[ w \frac{\sum (y-p)^2 y}{\sum y + s}
        + (1-w) \frac{\sum (y-p)^2 (1-y)}{\sum (1-y) + s} \right]

    Args:
        weight: w, share of the sensitivity, 0 ≤ w ≤ 1.

    Example:
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)
        >>> target[..., :1] = 1
        >>> round(SensitivitySpecificityLoss()(logits, target).item(), 4)
        0.25

    References:
        Brosch et al.: Deep convolutional encoder networks for multiple sclerosis lesion
        segmentation, MICCAI 2015, equation 5.
    """

    paper = "Brosch 2015, MICCAI"
    when = "Lesions in a large background, where sensitivity and specificity are the goal."
    when_not = "Many organs: unstable (Ma 2021)."

    def __init__(self, *, weight: float = 0.05, **options: Unpack[OverlapOptions]) -> None:
        super().__init__(**options)
        self.weight = check_number("weight", weight, maximum=1)

    def evaluate(self, batch: Batch) -> Tensor:
        """Mean over classes of the weighted mean squared errors inside and outside."""
        missed = batch.over_samples(batch.sum_by_class(batch.error.square()))
        false_positives = batch.over_samples(batch.others.square().flatten(3).sum(3))
        inside = batch.over_samples(batch.class_voxels)
        outside = inside.sum(2, keepdim=True) - inside
        sensitivity = safe_divide(missed, inside + self.smooth)
        specificity = safe_divide(false_positives, outside + self.smooth)
        loss = self.weight * sensitivity + (1 - self.weight) * specificity
        return batch.mean_over_classes(loss if self.include_background else loss[..., 1:])
