"""Weighted sums of losses; all terms of one share the softmax and the counts."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from nnunet_unifiedloss.losses.base import (
    CompoundLoss,
    Options,
    check_flag,
    check_number,
)
from nnunet_unifiedloss.losses.distribution import (
    AsymmetricFocalLoss,
    CrossEntropyLoss,
    SymmetricFocalLoss,
)
from nnunet_unifiedloss.losses.overlap import tversky_complement
from nnunet_unifiedloss.losses.region import (
    AsymmetricFocalTverskyLoss,
    DiceLoss,
    SymmetricFocalTverskyLoss,
)
from nnunet_unifiedloss.losses.view import View


class SymmetricUnifiedFocalLoss(CompoundLoss):
    r"""Symmetric Unified Focal loss.

    .. math:: L = \lambda \, L_\text{symmetric focal Tversky}
        + (1 - \lambda) \, L_\text{symmetric focal}

    Args:
        weight: λ, share of the focal Tversky term, 0 ≤ λ ≤ 1. So in the authors' code and in
            figure 1 of the paper; equation 19 prints it the other way round.
        delta: Weight of the foreground and of false negatives, 0 ≤ δ ≤ 1; > 0.5 favours
            sensitivity.
        gamma: Focusing, 0 ≤ γ < 1; 0 removes it.
        smooth: s of the Tversky index, ≥ 0.
        include_background: Use the background class in the Tversky term too.
        **options: regions, ignore_label, batch_dice, ddp; see :class:`SegmentationLoss`.

    Shape:
        logits (B, C, \*S), target (B, 1, \*S) or (B, \*S), with ``regions=True`` (B, C, \*S);
        returns a scalar.

    Raises:
        TypeError, ValueError: An argument is out of range; see also :class:`SegmentationLoss`.

    Example:
        >>> import torch
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)
        >>> loss = SymmetricUnifiedFocalLoss(weight=0, delta=0.5, gamma=0)  # ½ cross entropy
        >>> round(loss(logits, target).item(), 4)
        0.3466

    References:
        Yeung et al.: Unified Focal loss, Computerized Medical Imaging and Graphics 2022
        (arXiv:2102.04525), symmetric form L_sUF, equation 19, with λ as in the authors' code.
    """

    paper = "Yeung 2021, arXiv:2102.04525"
    when = "Severe imbalance where foreground classes differ little in size."

    def __init__(
        self,
        *,
        weight: float = 0.5,
        delta: float = 0.6,
        gamma: float = 0.5,
        smooth: float = 1e-7,
        include_background: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        self.weight = check_number("weight", weight, maximum=1)
        self.delta = check_number("delta", delta, maximum=1)
        self.gamma = check_number("gamma", gamma, maximum=1, below=True)
        self.smooth = check_number("smooth", smooth)
        self.include_background = check_flag("include_background", include_background)
        tversky = SymmetricFocalTverskyLoss(
            delta=delta,
            gamma=gamma,
            smooth=smooth,
            include_background=include_background,
            **options,
        )
        focal = SymmetricFocalLoss(delta=delta, gamma=gamma, **options)
        self.combine(SymmetricFocalTversky=(weight, tversky), SymmetricFocal=(1 - weight, focal))


class UnifiedFocalLoss(CompoundLoss):
    r"""Unified Focal loss, in the asymmetric form, the paper's best.

    .. math:: L = \lambda \, L_\text{asymmetric focal Tversky}
        + (1 - \lambda) \, L_\text{asymmetric focal}

    The focal term fades out easy background only, the Tversky term focuses foreground classes only:
    the rare class keeps its full gradient.

    Args:
        weight: λ, share of the focal Tversky term, 0 ≤ λ ≤ 1. So in the authors' code and in
            figure 1 of the paper; equation 19 prints it the other way round.
        delta: Weight of the foreground and of false negatives, 0 ≤ δ ≤ 1; > 0.5 favours
            sensitivity.
        gamma: Focusing, 0 ≤ γ < 1; 0 removes it.
        smooth: s of the Tversky index, ≥ 0.
        include_background: Use the background class in the Tversky term too.
        **options: regions, ignore_label, batch_dice, ddp; see :class:`SegmentationLoss`.

    Shape:
        logits (B, C, \*S), target (B, 1, \*S) or (B, \*S), with ``regions=True`` (B, C, \*S);
        returns a scalar.

    Raises:
        TypeError, ValueError: An argument is out of range; see also :class:`SegmentationLoss`.

    Example:
        >>> import torch
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)
        >>> round(UnifiedFocalLoss()(logits, target).item(), 4)
        0.611

    References:
        Yeung et al.: Unified Focal loss, Computerized Medical Imaging and Graphics 2022
        (arXiv:2102.04525), asymmetric form L_aUF, with λ as in the authors' code.
    """

    paper = "Yeung 2021, arXiv:2102.04525"
    when = "Start here when Dice + cross entropy misses a small lesion."

    def __init__(
        self,
        *,
        weight: float = 0.5,
        delta: float = 0.6,
        gamma: float = 0.5,
        smooth: float = 1e-7,
        include_background: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        self.weight = check_number("weight", weight, maximum=1)
        self.delta = check_number("delta", delta, maximum=1)
        self.gamma = check_number("gamma", gamma, maximum=1, below=True)
        self.smooth = check_number("smooth", smooth)
        self.include_background = check_flag("include_background", include_background)
        tversky = AsymmetricFocalTverskyLoss(
            delta=delta,
            gamma=gamma,
            smooth=smooth,
            include_background=include_background,
            **options,
        )
        focal = AsymmetricFocalLoss(delta=delta, gamma=gamma, **options)
        self.combine(AsymmetricFocalTversky=(weight, tversky), AsymmetricFocal=(1 - weight, focal))


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


class DiceCrossEntropyLoss(CompoundLoss):
    r"""Dice loss plus cross entropy: nnU-Net's default, plus 1.

    .. math:: L = w_d \, L_\text{Dice} + w_{ce} \, L_\text{cross entropy}

    Args:
        weight_dice: Weight of the Dice term, ≥ 0.
        weight_ce: Weight of the cross entropy, ≥ 0.
        smooth: s of the Dice term, ≥ 0.
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
        >>> round(DiceCrossEntropyLoss()(logits, target).item(), 4)
        1.0265

    References:
        Isensee et al.: nnU-Net, 2018 (arXiv:1809.10486), section 2.3; nnU-Net's code drops the
        constant 1 of the Dice loss.
    """

    paper = "Isensee 2018, arXiv:1809.10486"
    when = "nnU-Net's default; the baseline to beat."

    def __init__(
        self,
        *,
        weight_dice: float = 1,
        weight_ce: float = 1,
        smooth: float = 1e-5,
        include_background: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        self.weight_dice = check_number("weight_dice", weight_dice)
        self.weight_ce = check_number("weight_ce", weight_ce)
        if weight_dice == weight_ce == 0:
            raise ValueError("weight_dice, weight_ce: one of them must be > 0, got 0 and 0")
        self.smooth = check_number("smooth", smooth)
        self.include_background = check_flag("include_background", include_background)
        dice = DiceLoss(smooth=smooth, include_background=include_background, **options)
        self.combine(
            Dice=(weight_dice, dice), CrossEntropy=(weight_ce, CrossEntropyLoss(**options))
        )
