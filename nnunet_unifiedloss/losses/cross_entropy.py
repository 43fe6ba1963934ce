"""Cross entropy and its weighted variants."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from nnunet_unifiedloss.losses.base import Options, SegmentationLoss
from nnunet_unifiedloss.losses.checks import check_number, check_weights, plain
from nnunet_unifiedloss.losses.functional import constants
from nnunet_unifiedloss.losses.probabilities import Batch
from nnunet_unifiedloss.losses.ranking import weights_of_largest


class CrossEntropyLoss(SegmentationLoss):
    r"""Cross entropy.

    .. math:: L = \operatorname{mean}(-\ln p_t)

    Example:
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)
        >>> round(CrossEntropyLoss()(logits, target).item(), 4)
        0.6931

    References:
        Bishop: Pattern recognition and machine learning, Springer 2006, equation 4.108.
    """

    family = "distribution"
    paper = "Bishop 2006"
    when = "Balanced classes; the smoothest gradients."
    when_not = "Small structures: it is blind to them."

    def evaluate(self, batch: Batch) -> Tensor:
        """Mean CE."""
        return batch.mean_over_voxels(batch.cross_entropy)


class WeightedCrossEntropyLoss(SegmentationLoss):
    r"""Weighted cross entropy: every class has a weight.

    .. math:: L = \frac{\sum w_t \, (-\ln p_t)}{\sum w_t}

    Args:
        class_weights: One weight ≥ 0 for each class; with ``regions=True`` two, for background and
            region, or such a pair for each region. None: all 1; the trainer then takes the inverse
            frequencies of the labels in the training set, normalised to a mean of 1.

    Example:
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)
        >>> round(WeightedCrossEntropyLoss(class_weights=[0.2, 0.8])(logits, target).item(), 4)
        0.6931

    References:
        Ronneberger et al.: U-Net, MICCAI 2015 (arXiv:1505.04597), equation 1, with one weight for
        each class and normalised by the sum of the weights, as PyTorch's cross entropy is.
    """

    family = "distribution"
    paper = "Ronneberger 2015, arXiv:1505.04597"
    when = "Rare classes, and you know what each voxel of them should weigh."
    when_not = "Weights of hundreds make false positives cheap; prefer a compound then."

    def __init__(
        self,
        *,
        class_weights: Sequence[float] | Sequence[Sequence[float]] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        self.class_weights: tuple[Any, ...] | None = None
        if class_weights is not None:
            self.class_weights = self._check(plain(class_weights))

    def _check(self, weights: Sequence[Any]) -> tuple[Any, ...]:
        """The weights of each class, or of each region's pair of classes."""
        if self.regions and isinstance(weights, Sequence) and isinstance(weights[0], Sequence):
            return tuple(check_weights(f"class_weights[{i}]", w) for i, w in enumerate(weights))
        return check_weights("class_weights", weights)

    def evaluate(self, batch: Batch) -> Tensor:
        """Σ w_t · CE / Σ w_t over the batch, then the mean over regions."""
        weights = self._weights(batch)
        weighted = batch.over_batch((weights * batch.sum_by_class(batch.cross_entropy)).sum(2))
        total = batch.over_batch((weights * batch.class_voxels).sum(2))
        return (weighted / total.clamp_min(torch.finfo(total.dtype).tiny)).mean()

    def _weights(self, batch: Batch) -> Tensor:
        """W of each group and class, (G or 1, K)."""
        if self.class_weights is None:
            return batch.cross_entropy.new_ones(1, batch.num_classes)
        pairs = isinstance(self.class_weights[0], tuple)
        rows = self.class_weights if pairs else (self.class_weights,)
        groups = batch.error.shape[1]
        if len(rows) not in (1, groups) or any(len(row) != batch.num_classes for row in rows):
            raise ValueError(
                f"class_weights: {self.class_weights} do not fit {batch.num_classes} classes"
                + (f" (background and region) of {groups} regions" if self.regions else "")
            )
        return torch.stack([constants(row, batch.error) for row in rows])


class BalancedCrossEntropyLoss(SegmentationLoss):
    r"""Balanced cross entropy: a class weighs the share of the other classes.

    .. math:: L = \operatorname{mean}(w_t \, (-\ln p_t)), \quad w_c = 1 - N_c / N

    N_c of the N voxels of a sample belong to class c.

    Example:
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)
        >>> target[..., :1] = 1
        >>> round(BalancedCrossEntropyLoss()(logits, target).item(), 4)
        0.2599

    References:
        Xie, Tu: Holistically-nested edge detection, ICCV 2015 (arXiv:1504.06375), equation 2; here
        for any number of classes and as a mean over voxels.
    """

    family = "distribution"
    paper = "Xie 2015, arXiv:1504.06375"
    when = "Rare foreground whose share varies from patch to patch."
    when_not = "A patch without foreground gives no gradient: false positives there go unpunished."

    def evaluate(self, batch: Batch) -> Tensor:
        """Mean of w_t · CE."""
        share = batch.class_voxels / batch.voxels.clamp_min(1)[:, None, None]
        return batch.mean_over_voxels((1 - share) * batch.sum_by_class(batch.cross_entropy))


class TopKLoss(SegmentationLoss):
    r"""Top-k loss: cross entropy of the k % of voxels with the largest.

    .. math:: L = \operatorname{mean} \{ \text{the } \lfloor k\,\% \rfloor \text{ largest }
        -\ln p_t \text{ of the batch} \}

    Voxels that tie at the threshold share what is left of k equally. At least one voxel counts.

    Args:
        k: Percentage, 0 < k ≤ 100.

    Example:
        >>> logits, target = torch.zeros(1, 2, 4, 5), torch.zeros(1, 1, 4, 5)
        >>> logits[..., 0, 0] = torch.tensor([[0.0, 3.0]])
        >>> round(TopKLoss(k=5)(logits, target).item(), 4)
        3.0486

    References:
        Wu et al.: Bridging category-level and instance-level semantic image segmentation, 2016
        (arXiv:1605.06885), section 3.1 (online bootstrapping). Ignored voxels do not count among
        the k %, unlike in nnU-Net's own top-k loss.
    """

    family = "distribution"
    paper = "Wu 2016, arXiv:1605.06885"
    when = "Easy voxels dominate and the hard ones are trustworthy."
    when_not = "Noisy labels: the hardest voxels are then the wrongly labelled ones."

    def __init__(self, *, k: float = 10, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.k = check_number("k", k, maximum=100, above=True)
        # not in evaluate: torch before 2.5 cannot compile it
        self._share = Fraction(str(self.k)).limit_denominator(10**6) / 100

    def evaluate(self, batch: Batch) -> Tensor:
        """Mean of the ⌊k %⌋ largest CE of the batch, then over regions."""
        values = batch.cross_entropy.transpose(0, 1).flatten(1)
        voxels = batch.over_batch(batch.voxels.long())
        number = (voxels * self._share.numerator // self._share.denominator).clamp_min(1)
        weights = weights_of_largest(values, number.expand(values.shape[0], 1), ddp=self.ddp)
        return (batch.over_batch((weights * values).t()) / number).mean()
