"""Compounds with a Dice term that is more than the Dice loss."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from nnunet_unifiedloss.losses.arguments import check_flag, check_number
from nnunet_unifiedloss.losses.base import CompoundLoss, Options
from nnunet_unifiedloss.losses.distribution.focal import SymmetricFocalLoss
from nnunet_unifiedloss.losses.overlap import power, tversky_complement
from nnunet_unifiedloss.losses.view import View


class ComboLoss(CompoundLoss):
    r"""Combo loss: weighted cross entropy minus Dice; it is negative for good predictions.

    .. math:: L = \alpha \operatorname{mean}(w_t (-\ln p_t))
        - (1 - \alpha) \operatorname{mean}_c \frac{2 TP + s}{2 TP + FP + FN + s}, \quad
        w = \beta \text{ (foreground)}, 1 - \beta \text{ (background)}

    Args:
        alpha: Share of the cross entropy, 0 ≤ α ≤ 1.
        beta: Weight of foreground voxels in the cross entropy, 0 ≤ β ≤ 1; > 0.5 penalises false
            negatives more.
        smooth: s of the Dice term, ≥ 0.
        include_background: Use the background class in the Dice term too.
        **options: regions, ignore_label, batch_dice, ddp; see :class:`SegmentationLoss`.

    Shape:
        logits (B, C, \*S), target (B, 1, \*S) or (B, \*S), with ``regions=True`` (B, C, \*S);
        returns a scalar.

    Raises:
        TypeError, ValueError: An argument is out of range; see also :class:`SegmentationLoss`.

    Example:
        >>> import torch
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)
        >>> round(ComboLoss()(logits, target).item(), 4)
        0.0066

    References:
        Taghanaki et al.: Combo loss: handling input and output imbalance in multi-organ
        segmentation, Computerized Medical Imaging and Graphics 2019 (arXiv:1805.02798). There β
        weights the foreground of a binary problem; here every class but the background.
    """

    paper = "Taghanaki 2019, arXiv:1805.02798"
    when = "Several organs; a plain balance of sensitivity and precision."
    when_not = "A loss that must not be negative is expected."

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        beta: float = 0.5,
        smooth: float = 1e-5,
        include_background: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        self.alpha = check_number("alpha", alpha, maximum=1)
        self.beta = check_number("beta", beta, maximum=1)
        self.smooth = check_number("smooth", smooth)
        self.include_background = check_flag("include_background", include_background)
        self._cross_entropy = SymmetricFocalLoss(delta=beta, gamma=0, **options)

    def evaluate_terms(self, view: View) -> dict[str, Tensor]:
        """α · mean(w_t · CE) and −(1 − α) · mean_c Dice."""
        dice_loss = tversky_complement(
            view.counts,
            alpha=0.5,
            beta=0.5,
            smooth=self.smooth / 2,
            include_background=self.include_background,
        )
        return {
            "CrossEntropy": self.alpha * self._cross_entropy.evaluate(view),
            "Dice": (self.alpha - 1) * view.mean_over_classes(1 - dice_loss),
        }


class ExponentialLogarithmicLoss(CompoundLoss):
    r"""Exponential logarithmic loss: powers of the logarithms of Dice and of probabilities.

    .. math:: L = w_d \operatorname{mean}_c (-\ln \mathrm{Dice}_c)^{\gamma_d}
        + w_{ce} \operatorname{mean}(v_t \, CE^{\gamma_{ce}}), \quad
        v_c = \left( \frac{\sum_k f_k}{f_c} \right)^{1/2}

    f_c is the number of voxels of class c in the batch; CE = −ln p_t.

    Args:
        weight_dice: w_d ≥ 0.
        weight_ce: w_ce ≥ 0.
        gamma_dice: γ_d > 0.
        gamma_ce: γ_ce > 0.
        smooth: s > 0 of the Dice score, whose logarithm it keeps finite.
        include_background: Use the background class in the Dice term too.
        **options: regions, ignore_label, batch_dice, ddp; see :class:`SegmentationLoss`.

    Shape:
        logits (B, C, \*S), target (B, 1, \*S) or (B, \*S), with ``regions=True`` (B, C, \*S);
        returns a scalar.

    Raises:
        TypeError, ValueError: An argument is out of range, or both weights are 0; see also
            :class:`SegmentationLoss`.

    Example:
        >>> import torch
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)
        >>> loss = ExponentialLogarithmicLoss(weight_dice=0, weight_ce=1, gamma_ce=1)
        >>> round(loss(logits, target).item(), 4)
        0.6931

    References:
        Wong et al.: 3D segmentation with exponential logarithmic loss for highly unbalanced object
        sizes, MICCAI 2018 (arXiv:1809.00076), equations 1 to 3, with the frequencies of the batch.
    """

    paper = "Wong 2018, arXiv:1809.00076"
    when = "Structures of very different size in one image."
    when_not = "Absent classes are common: their Dice of 0 costs much."

    def __init__(
        self,
        *,
        weight_dice: float = 0.8,
        weight_ce: float = 0.2,
        gamma_dice: float = 0.3,
        gamma_ce: float = 0.3,
        smooth: float = 1e-5,
        include_background: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        self.weight_dice = check_number("weight_dice", weight_dice)
        self.weight_ce = check_number("weight_ce", weight_ce)
        if weight_dice == weight_ce == 0:
            raise ValueError("weight_dice, weight_ce: one of them must be > 0, got 0 and 0")
        self.gamma_dice = check_number("gamma_dice", gamma_dice, above=True)
        self.gamma_ce = check_number("gamma_ce", gamma_ce, above=True)
        self.smooth = check_number("smooth", smooth, above=True)
        self.include_background = check_flag("include_background", include_background)

    def evaluate_terms(self, view: View) -> dict[str, Tensor]:
        """The weighted summands."""
        return {
            "Dice": self.weight_dice * self._dice(view),
            "CrossEntropy": self.weight_ce * self._cross_entropy(view),
        }

    def _dice(self, view: View) -> Tensor:
        first = 0 if self.include_background else 1
        tp, fp, fn = (count[..., first:] for count in view.counts)
        minus_log_dice = torch.log1p((fp + fn) / (2 * tp + self.smooth))
        return view.mean_over_classes(power(minus_log_dice, self.gamma_dice))

    def _cross_entropy(self, view: View) -> Tensor:
        frequency = view.over_batch(view.class_voxels)
        share = frequency / frequency.sum(1, keepdim=True).clamp_min(1)
        weight = torch.where(share > 0, share, torch.inf).rsqrt()
        return view.mean_over_voxels(
            weight * view.sum_by_class(power(view.cross_entropy, self.gamma_ce))
        )
