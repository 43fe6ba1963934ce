"""The Unified Focal loss: asymmetric (the paper's best) and symmetric."""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import Unpack

from nnunet_unifiedloss.losses.base import CompoundLoss, Options, OverlapLoss
from nnunet_unifiedloss.losses.checks import check_number
from nnunet_unifiedloss.losses.focal import AsymmetricFocalLoss, SymmetricFocalLoss
from nnunet_unifiedloss.losses.tversky import (
    AsymmetricFocalTverskyLoss,
    SymmetricFocalTverskyLoss,
)


class UnifiedFocalLoss(OverlapLoss, CompoundLoss):
    r"""Unified Focal loss, in the asymmetric form, the paper's best.

    .. math:: L = \lambda \, L_\text{asymmetric focal Tversky}
        + (1 - \lambda) \, L_\text{asymmetric focal}

    The focal term down-weights easy background voxels only; the Tversky term focuses foreground
    classes only. A rare class therefore keeps its full gradient.

    Args:
        weight: λ, share of the focal Tversky term, 0 ≤ λ ≤ 1, as in the authors' code and
            figure 1 of the paper; equation 19 prints it the other way round.
        delta: Weight of the foreground and of false negatives, 0 ≤ δ ≤ 1; > 0.5 favours
            sensitivity.
        gamma: Focusing, 0 ≤ γ < 1; 0 removes it.

    Example:
        >>> import torch
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)
        >>> round(UnifiedFocalLoss()(logits, target).item(), 4)
        0.611

    References:
        Yeung et al.: Unified Focal loss, Computerized Medical Imaging and Graphics 2022
        (arXiv:2102.04525), asymmetric form L_aUF, with λ as in the authors' code.
    """

    family = "compound"
    paper = "Yeung 2021, arXiv:2102.04525"
    when = "Start here when Dice + cross entropy misses a small lesion."
    when_not = "Large structures: nnU-Net's Dice + cross entropy is hard to beat there."

    tversky_class: ClassVar[type[SymmetricFocalTverskyLoss]] = AsymmetricFocalTverskyLoss
    focal_class: ClassVar[type[SymmetricFocalLoss]] = AsymmetricFocalLoss

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
        super().__init__(smooth=smooth, include_background=include_background, **options)
        self.weight = check_number("weight", weight, maximum=1)
        self.delta = check_number("delta", delta, maximum=1)
        self.gamma = check_number("gamma", gamma, maximum=1, below=True)
        tversky = self.tversky_class(
            delta=delta,
            gamma=gamma,
            smooth=smooth,
            include_background=include_background,
            **options,
        )
        focal = self.focal_class(delta=delta, gamma=gamma, **options)
        parts = ((self.weight, tversky), (1 - self.weight, focal))
        self.combine(**{type(loss).__name__.removesuffix("Loss"): (w, loss) for w, loss in parts})


class SymmetricUnifiedFocalLoss(UnifiedFocalLoss):
    r"""Symmetric Unified Focal loss.

    .. math:: L = \lambda \, L_\text{symmetric focal Tversky}
        + (1 - \lambda) \, L_\text{symmetric focal}

    Args:
        weight: λ, share of the focal Tversky term, 0 ≤ λ ≤ 1, as in the authors' code and
            figure 1 of the paper; equation 19 prints it the other way round.
        delta: Weight of the foreground and of false negatives, 0 ≤ δ ≤ 1; > 0.5 favours
            sensitivity.
        gamma: Focusing, 0 ≤ γ < 1; 0 removes it.

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
    when_not = "Rare foreground: the asymmetric form keeps its gradient."
    tversky_class = SymmetricFocalTverskyLoss
    focal_class = SymmetricFocalLoss
