"""Focal losses: cross entropy with confident voxels down-weighted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import Unpack

from nnunet_unifiedloss.losses.base import Options, SegmentationLoss
from nnunet_unifiedloss.losses.checks import check_number, check_weights, plain
from nnunet_unifiedloss.losses.functional import constants, focal_weight
from nnunet_unifiedloss.losses.probabilities import Batch


class FocalLoss(SegmentationLoss):
    r"""Focal loss: cross entropy with confident voxels down-weighted.

    .. math:: L = \operatorname{mean}(\alpha_t (1 - p_t)^\gamma (-\ln p_t))

    Args:
        gamma: Focusing exponent, γ ≥ 0; 0 is cross entropy.
        alpha: None: no weights. A number in [0, 1]: α for every foreground class and 1 − α for the
            background. A list: one weight for each class (with ``regions=True`` two, for
            background and region).

    Example:
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)
        >>> round(FocalLoss(gamma=2)(logits, target).item(), 4)
        0.1733

    References:
        Lin et al.: Focal loss for dense object detection, ICCV 2017, equations 4 and 5. There α is
        1 unless set; so it is here.
    """

    family = "distribution"
    paper = "Lin 2017, arXiv:1708.02002"
    when = "Many easy background voxels drown the few hard ones."
    when_not = "Noisy labels: focusing amplifies them; small foreground at a low learning rate."

    def __init__(
        self,
        *,
        gamma: float = 2,
        alpha: float | Sequence[float] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        self.gamma = check_number("gamma", gamma)
        self.alpha: float | tuple[float, ...] | None = None
        if isinstance(plain(alpha), (int, float)):
            self.alpha = check_number("alpha", alpha, maximum=1)
        elif alpha is not None:
            self.alpha = check_weights("alpha", alpha)

    def evaluate(self, batch: Batch) -> Tensor:
        """Mean of α_t · (1 − p_t)^γ · CE."""
        focal = focal_weight(batch.error, self.gamma) * batch.cross_entropy
        return batch.mean_over_voxels(self._class_weight(batch) * batch.sum_by_class(focal))

    def _class_weight(self, batch: Batch) -> Tensor:
        """α of each class, (K,)."""
        if self.alpha is None:
            alpha: tuple[float, ...] = (1.0,) * batch.num_classes
        elif isinstance(self.alpha, (int, float)):
            alpha = (1 - self.alpha,) + (self.alpha,) * (batch.num_classes - 1)
        else:
            alpha = self.alpha
        if len(alpha) != batch.num_classes:
            raise ValueError(f"alpha: has {len(alpha)} weights for {batch.num_classes} classes")
        return constants(alpha, batch.error)


class SymmetricFocalLoss(SegmentationLoss):
    r"""Symmetric focal loss: focal loss with foreground weighted against background.

    .. math:: L = \operatorname{mean}(w_t (1 - p_t)^\gamma (-\ln p_t)), \quad
        w = \delta \text{ (foreground)}, 1 - \delta \text{ (background)}

    Args:
        delta: Weight of foreground voxels, 0 ≤ δ ≤ 1; > 0.5 penalises false negatives more.
        gamma: Focusing exponent, γ ≥ 0.

    Example:
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)
        >>> round(SymmetricFocalLoss(delta=0.7, gamma=1)(logits, target).item(), 4)
        0.2426

    References:
        Yeung et al.: Unified Focal loss, Computerized Medical Imaging and Graphics 2022
        (arXiv:2102.04525), modified focal loss L_mF, with the exponent γ of the authors' code.
    """

    family = "distribution"
    paper = "Yeung 2021, arXiv:2102.04525"
    when = "Imbalance in both ways: rare foreground and many easy voxels."
    when_not = "Foreground is rare: its voxels are down-weighted like the easy background."

    def __init__(self, *, delta: float = 0.7, gamma: float = 2, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.delta = check_number("delta", delta, maximum=1)
        self.gamma = check_number("gamma", gamma)

    def evaluate(self, batch: Batch) -> Tensor:
        """Mean of w_t · (1 − p_t)^γ · CE."""
        focal = focal_weight(batch.error, self.gamma) * batch.cross_entropy
        weighted = torch.where(batch.foreground, self.delta * focal, (1 - self.delta) * focal)
        return batch.mean_over_voxels(weighted)


class AsymmetricFocalLoss(SymmetricFocalLoss):
    r"""Asymmetric focal loss: only background voxels are down-weighted.

    .. math:: L = \operatorname{mean}\begin{cases}
        \delta \, (-\ln p_t) & \text{foreground} \\
        (1 - \delta) (1 - p_t)^\gamma (-\ln p_t) & \text{background} \end{cases}

    Args:
        delta: Weight of foreground voxels, 0 ≤ δ ≤ 1; > 0.5 penalises false negatives more.
        gamma: Focusing exponent of the background, γ ≥ 0.

    Example:
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)
        >>> round(AsymmetricFocalLoss(delta=0.7, gamma=1)(logits, target).item(), 4)
        0.4852

    References:
        Yeung et al.: Unified Focal loss, Computerized Medical Imaging and Graphics 2022
        (arXiv:2102.04525), modified asymmetric focal loss L_maF; with several classes, every one
        but the background is a rare class.
    """

    paper = "Yeung 2021, arXiv:2102.04525"
    when = "Rare foreground that must keep its full gradient while easy background fades."
    when_not = "Alone on tiny structures: nothing rewards overlap."

    def evaluate(self, batch: Batch) -> Tensor:
        """Mean of δ · CE on the foreground and (1 − δ) · (1 − p_t)^γ · CE on the background."""
        focal = focal_weight(batch.error, self.gamma)
        weight = torch.where(batch.foreground, self.delta, (1 - self.delta) * focal)
        return batch.mean_over_voxels(weight * batch.cross_entropy)
