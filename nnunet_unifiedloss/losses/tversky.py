"""Losses of the Tversky index: false positives and false negatives weighted."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from nnunet_unifiedloss.losses.base import Options, OverlapLoss, OverlapOptions
from nnunet_unifiedloss.losses.checks import check_number
from nnunet_unifiedloss.losses.functional import power, tversky_loss
from nnunet_unifiedloss.losses.probabilities import Batch


class TverskyLoss(OverlapLoss):
    r"""Tversky loss: Dice with false positives and false negatives weighted.

    .. math:: L = 1 - \operatorname{mean}_c \mathrm{TI}_c, \quad
        \mathrm{TI} = \frac{TP + s}{TP + \alpha FP + \beta FN + s}

    Args:
        alpha: Weight of false positives, α ≥ 0.
        beta: Weight of false negatives, β ≥ 0; β > α favours sensitivity. Some papers and
            libraries swap the two.

    Example:
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)
        >>> round(TverskyLoss(alpha=0.3, beta=0.7)(logits, target).item(), 4)
        0.4118

    References:
        Salehi et al.: Tversky loss function for image segmentation using 3D fully convolutional
        deep networks, MLMI 2017 (arXiv:1706.05721), the Tversky loss.
    """

    paper = "Salehi 2017, arXiv:1706.05721"
    when = "Small lesions are missed: trade precision for sensitivity."
    when_not = "Precision counts: false positives get cheap."

    def __init__(
        self, *, alpha: float = 0.3, beta: float = 0.7, **options: Unpack[OverlapOptions]
    ) -> None:
        super().__init__(**options)
        self.alpha = check_number("alpha", alpha)
        self.beta = check_number("beta", beta)
        if alpha == beta == 0:
            raise ValueError("alpha, beta: one of them must be > 0, got 0 and 0")

    def evaluate(self, batch: Batch) -> Tensor:
        """1 − mean_c TI."""
        return batch.mean_over_classes(self.loss_by_class(batch))

    def loss_by_class(self, batch: Batch) -> Tensor:
        """1 − TI of each sample, group and class in use, (B, G, K)."""
        return tversky_loss(
            self.counts(batch), alpha=self.alpha, beta=self.beta, smooth=self.smooth
        )


class JaccardLoss(OverlapLoss):
    r"""Jaccard loss.

    .. math:: L = 1 - \operatorname{mean}_c \frac{TP + s}{TP + FP + FN + s}

    Example:
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

    def evaluate(self, batch: Batch) -> Tensor:
        """1 − mean_c Jaccard index, the Tversky index with α = β = 1."""
        loss = tversky_loss(self.counts(batch), alpha=1, beta=1, smooth=self.smooth)
        return batch.mean_over_classes(loss)


class AsymmetricSimilarityLoss(OverlapLoss):
    r"""Asymmetric similarity loss: the F_β score as a loss.

    .. math:: L = 1 - \operatorname{mean}_c \frac{TP + s}{TP + \frac{1}{1+\beta^2} FP
        + \frac{\beta^2}{1+\beta^2} FN + s}

    Args:
        beta: β ≥ 0; above 1 it favours sensitivity.

    Example:
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)
        >>> round(AsymmetricSimilarityLoss(beta=1)(logits, target).item(), 4)
        0.3333

    References:
        Hashemi et al.: Asymmetric loss functions and deep densely-connected networks for highly
        imbalanced medical image segmentation, IEEE Access 2019 (arXiv:1803.11078), the asymmetric
        similarity loss.
    """

    paper = "Hashemi 2018, arXiv:1803.11078"
    when = "Lesions are missed: one parameter trades precision for sensitivity."
    when_not = "Precision matters as much as sensitivity; β = 1 is Dice."

    def __init__(self, *, beta: float = 1.5, **options: Unpack[OverlapOptions]) -> None:
        super().__init__(**options)
        self.beta = check_number("beta", beta)

    def evaluate(self, batch: Batch) -> Tensor:
        """1 − mean_c F_β, a Tversky index."""
        squared = self.beta**2
        return batch.mean_over_classes(
            tversky_loss(
                self.counts(batch),
                alpha=1 / (1 + squared),
                beta=squared / (1 + squared),
                smooth=self.smooth,
            )
        )


class FocalTverskyLoss(TverskyLoss):
    r"""Focal Tversky loss: a power of the Tversky loss of each class.

    .. math:: L = \operatorname{mean}_c (1 - \mathrm{TI}_c)^\gamma

    Args:
        alpha: Weight of false positives, α ≥ 0.
        beta: Weight of false negatives, β ≥ 0.
        gamma: Exponent, γ > 0; below 1 it raises the gradient where the index is already good.
            The paper writes it 1/γ.

    Example:
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)
        >>> round(FocalTverskyLoss(gamma=0.75)(logits, target).item(), 4)
        0.514

    References:
        Abraham, Khan: A novel focal Tversky loss function with improved attention U-Net for lesion
        segmentation, ISBI 2019 (arXiv:1810.07842), the focal Tversky loss.
    """

    paper = "Abraham 2018, arXiv:1810.07842"
    when = "Small lesions that are found, but not exactly: γ < 1 keeps their gradient to the end."
    when_not = "Structures that are still missed: with γ < 1 their gradient is the smallest."

    def __init__(
        self,
        *,
        alpha: float = 0.3,
        beta: float = 0.7,
        gamma: float = 0.75,
        **options: Unpack[OverlapOptions],
    ) -> None:
        super().__init__(alpha=alpha, beta=beta, **options)
        self.gamma = check_number("gamma", gamma, above=True)

    def evaluate(self, batch: Batch) -> Tensor:
        """Mean of (1 − TI)^γ."""
        return batch.mean_over_classes(power(self.loss_by_class(batch), self.gamma))


class SymmetricFocalTverskyLoss(OverlapLoss):
    r"""Symmetric focal Tversky loss.

    .. math:: L = \operatorname{mean}_c (1 - \mathrm{TI}_c)^{1 - \gamma}, \quad
        \mathrm{TI} = \frac{TP + s}{TP + (1 - \delta) FP + \delta FN + s}

    Args:
        delta: Weight of false negatives against false positives, 0 ≤ δ ≤ 1.
        gamma: Focusing, 0 ≤ γ < 1; 0 is the Tversky loss.

    Example:
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)
        >>> round(SymmetricFocalTverskyLoss(delta=0.7, gamma=0)(logits, target).item(), 4)
        0.7059

    References:
        Yeung et al.: Unified Focal loss, Computerized Medical Imaging and Graphics 2022
        (arXiv:2102.04525), modified focal Tversky loss L_mFT, with the exponent 1 − γ of the
        authors' code.
    """

    paper = "Yeung 2021, arXiv:2102.04525"
    when = "As FocalTversky, with one balance δ and the background included."
    when_not = "Large background: it is focused like a class."

    def __init__(
        self,
        *,
        delta: float = 0.7,
        gamma: float = 0.75,
        smooth: float = 1e-7,
        include_background: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(smooth=smooth, include_background=include_background, **options)
        self.delta = check_number("delta", delta, maximum=1)
        self.gamma = check_number("gamma", gamma, maximum=1, below=True)

    def evaluate(self, batch: Batch) -> Tensor:
        """Mean of (1 − TI)^(1 − γ)."""
        return batch.mean_over_classes(self.focus(self.loss_by_class(batch)))

    def loss_by_class(self, batch: Batch) -> Tensor:
        """1 − TI of each sample, group and class in use, (B, G, K)."""
        return tversky_loss(
            self.counts(batch), alpha=1 - self.delta, beta=self.delta, smooth=self.smooth
        )

    def focus(self, loss: Tensor) -> Tensor:
        """(1 − TI)^(1 − γ)."""
        return power(loss, 1 - self.gamma)


class AsymmetricFocalTverskyLoss(SymmetricFocalTverskyLoss):
    r"""Asymmetric focal Tversky loss: only foreground classes are focused.

    .. math:: L = \operatorname{mean}_c \begin{cases}
        1 - \mathrm{TI}_c & \text{background} \\
        (1 - \mathrm{TI}_c)^{1 - \gamma} & \text{foreground} \end{cases}, \quad
        \mathrm{TI} = \frac{TP + s}{TP + (1 - \delta) FP + \delta FN + s}

    Args:
        delta: Weight of false negatives against false positives, 0 ≤ δ ≤ 1.
        gamma: Focusing of the foreground, 0 ≤ γ < 1; 0 is the Tversky loss.

    Example:
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)
        >>> round(AsymmetricFocalTverskyLoss(delta=0.7, gamma=0.5)(logits, target).item(), 4)
        0.8208

    References:
        Yeung et al.: Unified Focal loss, Computerized Medical Imaging and Graphics 2022
        (arXiv:2102.04525), modified asymmetric focal Tversky loss L_maFT.
    """

    when = "Rare foreground: only its classes are focused."
    when_not = "Alone early in a training; the Unified Focal loss adds what is missing."

    def focus(self, loss: Tensor) -> Tensor:
        """(1 − TI)^(1 − γ) for foreground classes, 1 − TI for the background."""
        background = int(self.include_background)
        foreground = super().focus(loss[..., background:])
        return torch.cat([loss[..., :background], foreground], dim=-1)
