"""Sums of a Dice term and another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import Unpack

from nnunet_unifiedloss.losses.base import CompoundLoss, Options, OverlapLoss, OverlapOptions
from nnunet_unifiedloss.losses.boundary import BoundaryLoss, HausdorffDTLoss
from nnunet_unifiedloss.losses.checks import check_number
from nnunet_unifiedloss.losses.cross_entropy import CrossEntropyLoss, TopKLoss
from nnunet_unifiedloss.losses.dice import DiceLoss
from nnunet_unifiedloss.losses.focal import FocalLoss, SymmetricFocalLoss
from nnunet_unifiedloss.losses.functional import power
from nnunet_unifiedloss.losses.probabilities import Batch


class DiceCompoundLoss(OverlapLoss, CompoundLoss, abstract=True):
    """Base class of sums of the Dice loss and another one."""

    family = "compound"

    def dice_loss(self) -> DiceLoss:
        """The Dice term."""
        return DiceLoss(
            smooth=self.smooth, include_background=self.include_background, **self.options
        )


class DiceCrossEntropyLoss(DiceCompoundLoss):
    r"""Dice loss plus cross entropy: nnU-Net's default, plus 1.

    .. math:: L = w_d \, L_\text{Dice} + w_{ce} \, L_\text{cross entropy}

    Args:
        weight_dice: Weight of the Dice term, ≥ 0.
        weight_ce: Weight of the cross entropy, ≥ 0.

    Example:
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)
        >>> round(DiceCrossEntropyLoss()(logits, target).item(), 4)
        1.0265

    References:
        Isensee et al.: nnU-Net, 2018 (arXiv:1809.10486), section 2.3; nnU-Net's code drops the
        constant 1 of the Dice loss.
    """

    paper = "Isensee 2018, arXiv:1809.10486"
    when = "nnU-Net's default; the baseline to beat."
    when_not = "Lesions of a thousandth of the scan, which it tends to miss."

    def __init__(
        self, *, weight_dice: float = 1, weight_ce: float = 1, **options: Unpack[OverlapOptions]
    ) -> None:
        super().__init__(**options)
        self.weight_dice = check_number("weight_dice", weight_dice)
        self.weight_ce = check_number("weight_ce", weight_ce)
        if weight_dice == weight_ce == 0:
            raise ValueError("weight_dice, weight_ce: one of them must be > 0, got 0 and 0")
        self.combine(
            Dice=(weight_dice, self.dice_loss()),
            CrossEntropy=(weight_ce, CrossEntropyLoss(**self.options)),
        )


class DiceFocalLoss(DiceCompoundLoss):
    r"""Dice loss plus focal loss.

    .. math:: L = L_\text{Dice} + L_\text{focal}

    Args:
        gamma: Focusing exponent of the focal term, γ ≥ 0.
        alpha: Class weights of the focal term; see :class:`FocalLoss`.

    Example:
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)
        >>> round(DiceFocalLoss()(logits, target).item(), 4)
        0.5066

    References:
        Zhu et al.: AnatomyNet, Medical Physics 2019 (arXiv:1808.05238), section 2.D.
    """

    paper = "Zhu 2019, arXiv:1808.05238"
    when = "Dice + CE with the easy voxels faded out."
    when_not = "Noisy labels: focusing amplifies them."

    def __init__(
        self,
        *,
        gamma: float = 2,
        alpha: float | Sequence[float] | None = None,
        **options: Unpack[OverlapOptions],
    ) -> None:
        super().__init__(**options)
        focal = FocalLoss(gamma=gamma, alpha=alpha, **self.options)
        self.gamma, self.alpha = focal.gamma, focal.alpha
        self.combine(Dice=(1, self.dice_loss()), Focal=(1, focal))


class DiceTopKLoss(DiceCompoundLoss):
    r"""Dice loss plus top-k loss.

    .. math:: L = L_\text{Dice} + L_\text{top-k}

    Args:
        k: Percentage of voxels in the top-k term, 0 < k ≤ 100.

    Example:
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)
        >>> round(DiceTopKLoss()(logits, target).item(), 4)
        1.0265

    References:
        Ma et al.: Loss odyssey in medical image segmentation, Medical Image Analysis 2021,
        section 2.5.
    """

    paper = "Ma 2021, Medical Image Analysis"
    when = "Among the most robust in Ma 2021, with DiceFocal."
    when_not = "Noisy labels: the hardest voxels are then the wrongly labelled ones."

    def __init__(self, *, k: float = 10, **options: Unpack[OverlapOptions]) -> None:
        super().__init__(**options)
        top_k = TopKLoss(k=k, **self.options)
        self.k = top_k.k
        self.combine(Dice=(1, self.dice_loss()), TopK=(1, top_k))


class DiceBoundaryLoss(DiceCompoundLoss):
    r"""Dice loss plus boundary loss, whose weight ramps up over the training.

    .. math:: L = L_\text{Dice} + \alpha \, L_\text{boundary}, \quad
        \alpha: \text{ from its start value to 1}

    α rises linearly from epoch to epoch and reaches 1 in the last one; outside of a training it has
    its start value.

    Args:
        alpha: Start value, 0 < α ≤ 1.
        spacing: Size of a voxel along each axis; None: distances in voxels.

    Example:
        >>> loss = DiceBoundaryLoss(alpha=0.01)
        >>> loss.start_epoch(99, 100, {})
        >>> loss.weights
        {'Dice': 1, 'Boundary': 1.0}

    References:
        Kervadec et al.: Boundary loss for highly unbalanced segmentation, MIDL 2019
        (arXiv:1812.07032), with the rising weight of the journal version (Medical Image Analysis
        2021) and an ordinary Dice loss in place of the generalised one.
    """

    paper = "Kervadec 2019, arXiv:1812.07032"
    when = "Highly unbalanced foreground whose boundary matters."
    when_not = "Patches mostly without foreground: the boundary term is then 0."
    compiles = False
    scheduled = True

    def __init__(
        self,
        *,
        alpha: float = 0.01,
        smooth: float = 1e-5,
        include_background: bool = False,
        spacing: Sequence[float] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(smooth=smooth, include_background=include_background, **options)
        self.alpha = check_number("alpha", alpha, maximum=1, above=True)
        boundary = BoundaryLoss(spacing=spacing, **self.options)
        self.spacing = boundary.spacing
        self.combine(Dice=(1, self.dice_loss()), Boundary=(self.alpha, boundary))

    def start_epoch(self, epoch: int, num_epochs: int, previous: Mapping[str, float]) -> None:
        """Raise α linearly to 1 in the last epoch."""
        progress = min(epoch / max(num_epochs - 1, 1), 1.0)
        self.weights["Boundary"] = self.alpha + (1 - self.alpha) * progress


class DiceHausdorffLoss(DiceCompoundLoss):
    r"""Dice loss plus Hausdorff loss by distance transforms, rebalanced each epoch.

    .. math:: L = L_\text{Dice} + \lambda \, L_\text{Hausdorff}, \quad
        \lambda = \frac{\text{mean of } L_\text{Dice}}{\text{mean of } L_\text{Hausdorff}}
        \text{ in the epoch before}

    λ is 1 in the first epoch, after one with a mean of 0, and outside of a training.

    Args:
        alpha: Exponent of the distances, > 0.
        spacing: Size of a voxel along each axis; None: distances in voxels.

    Example:
        >>> loss = DiceHausdorffLoss()
        >>> loss.start_epoch(1, 100, {"Dice": 0.5, "HausdorffDT": 10.0})
        >>> loss.weights
        {'Dice': 1, 'HausdorffDT': 0.05}

    References:
        Karimi, Salcudean: Reducing the Hausdorff distance in medical image segmentation with
        convolutional neural networks, IEEE TMI 2019 (arXiv:1904.10030), section III.
    """

    paper = "Karimi 2019, arXiv:1904.10030"
    when = "The Hausdorff distance is judged beside Dice."
    when_not = "Noisy labels: single far voxels dominate the second term."
    compiles = False
    scheduled = True

    def __init__(
        self,
        *,
        alpha: float = 2,
        smooth: float = 1e-5,
        include_background: bool = False,
        spacing: Sequence[float] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(smooth=smooth, include_background=include_background, **options)
        hausdorff = HausdorffDTLoss(alpha=alpha, spacing=spacing, **self.options)
        self.alpha, self.spacing = hausdorff.alpha, hausdorff.spacing
        self.combine(Dice=(1, self.dice_loss()), HausdorffDT=(1, hausdorff))

    def start_epoch(self, epoch: int, num_epochs: int, previous: Mapping[str, float]) -> None:
        """Give both terms the same mean, going by the epoch before."""
        dice, hausdorff = (previous.get(name, 0.0) for name in ("Dice", "HausdorffDT"))
        self.weights["HausdorffDT"] = dice / hausdorff if dice > 0 and hausdorff > 0 else 1


class ComboLoss(DiceCompoundLoss):
    r"""Combo loss: weighted cross entropy minus Dice; it is negative for good predictions.

    .. math:: L = \alpha \operatorname{mean}(w_t (-\ln p_t))
        - (1 - \alpha) \operatorname{mean}_c \frac{2 TP + s}{2 TP + FP + FN + s}, \quad
        w = \beta \text{ (foreground)}, 1 - \beta \text{ (background)}

    Args:
        alpha: Share of the cross entropy, 0 ≤ α ≤ 1.
        beta: Weight of foreground voxels in the cross entropy, 0 ≤ β ≤ 1; > 0.5 penalises false
            negatives more.

    Example:
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
        super().__init__(smooth=smooth, include_background=include_background, **options)
        self.alpha = check_number("alpha", alpha, maximum=1)
        self.beta = check_number("beta", beta, maximum=1)
        self.dice = self.dice_loss()
        self.cross_entropy = SymmetricFocalLoss(delta=beta, gamma=0, **options)

    def evaluate_terms(self, batch: Batch) -> dict[str, Tensor]:
        """α · mean(w_t · CE) and −(1 − α) · mean_c Dice."""
        return {
            "CrossEntropy": self.alpha * self.cross_entropy.evaluate(batch),
            "Dice": (self.alpha - 1) * batch.mean_over_classes(1 - self.dice.dice(batch)),
        }


class ExponentialLogarithmicLoss(OverlapLoss, CompoundLoss):
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

    Example:
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)
        >>> loss = ExponentialLogarithmicLoss(weight_dice=0, weight_ce=1, gamma_ce=1)
        >>> round(loss(logits, target).item(), 4)
        0.6931

    References:
        Wong et al.: 3D segmentation with exponential logarithmic loss for highly unbalanced object
        sizes, MICCAI 2018 (arXiv:1809.00076), equations 1 to 3, with the frequencies of the batch.
    """

    family = "compound"
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
        super().__init__(smooth=smooth, include_background=include_background, **options)
        self.weight_dice = check_number("weight_dice", weight_dice)
        self.weight_ce = check_number("weight_ce", weight_ce)
        if weight_dice == weight_ce == 0:
            raise ValueError("weight_dice, weight_ce: one of them must be > 0, got 0 and 0")
        self.gamma_dice = check_number("gamma_dice", gamma_dice, above=True)
        self.gamma_ce = check_number("gamma_ce", gamma_ce, above=True)
        check_number("smooth", smooth, above=True)

    def evaluate_terms(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted summands."""
        return {
            "Dice": self.weight_dice * self._dice(batch),
            "CrossEntropy": self.weight_ce * self._cross_entropy(batch),
        }

    def _dice(self, batch: Batch) -> Tensor:
        tp, fp, fn = self.counts(batch)
        minus_log_dice = torch.log1p((fp + fn) / (2 * tp + self.smooth))
        return batch.mean_over_classes(power(minus_log_dice, self.gamma_dice))

    def _cross_entropy(self, batch: Batch) -> Tensor:
        frequency = batch.over_batch(batch.class_voxels)
        share = frequency / frequency.sum(1, keepdim=True).clamp_min(1)
        weight = torch.where(share > 0, share, torch.inf).rsqrt()
        powers = batch.sum_by_class(power(batch.cross_entropy, self.gamma_ce))
        return batch.mean_over_voxels(weight * powers)
