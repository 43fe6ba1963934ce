"""Cross entropy and its weighted relatives."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor
from typing_extensions import Unpack

from nnunet_unifiedloss.losses.arguments import check_percentage, check_spacing, check_weights
from nnunet_unifiedloss.losses.base import Options, SegmentationLoss
from nnunet_unifiedloss.losses.selection import weights_of_largest
from nnunet_unifiedloss.losses.view import View


class CrossEntropyLoss(SegmentationLoss):
    r"""Cross entropy.

    .. math:: L = \operatorname{mean}(-\ln p_t)

    Args:
        **options: regions, ignore_label, batch_dice, ddp; see :class:`SegmentationLoss`.

    Shape:
        logits (B, C, \*S), target (B, 1, \*S) or (B, \*S), with ``regions=True`` (B, C, \*S);
        returns a scalar.

    Raises:
        TypeError, ValueError: See :class:`SegmentationLoss`.

    Example:
        >>> import torch
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)
        >>> round(CrossEntropyLoss()(logits, target).item(), 4)
        0.6931

    References:
        Bishop: Pattern recognition and machine learning, Springer 2006, equation 4.108.
    """

    paper = "Bishop 2006"
    when = "Balanced classes; the smoothest gradients."
    when_not = "Small structures: it is blind to them."

    def evaluate(self, view: View) -> Tensor:
        """Mean CE."""
        return view.mean_over_voxels(view.cross_entropy)


class WeightedCrossEntropyLoss(SegmentationLoss):
    r"""Weighted cross entropy: every class has a weight.

    .. math:: L = \frac{\sum w_t \, (-\ln p_t)}{\sum w_t}

    Args:
        class_weights: One weight ≥ 0 for each class; with ``regions=True`` two, for background and
            region, or such a pair for each region. None: all 1; the trainer then takes the inverse
            frequencies of the labels in the training set, normalised to a mean of 1.
        **options: regions, ignore_label, batch_dice, ddp; see :class:`SegmentationLoss`.

    Shape:
        logits (B, C, \*S), target (B, 1, \*S) or (B, \*S), with ``regions=True`` (B, C, \*S);
        returns a scalar.

    Raises:
        TypeError, ValueError: A weight is out of range, or there is not one for each class; see
            also :class:`SegmentationLoss`.

    Example:
        >>> import torch
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)
        >>> round(WeightedCrossEntropyLoss(class_weights=[0.2, 0.8])(logits, target).item(), 4)
        0.6931

    References:
        Ronneberger et al.: U-Net, MICCAI 2015 (arXiv:1505.04597), equation 1, with one weight for
        each class and normalised by the sum of the weights, as PyTorch's cross entropy is.
    """

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
        self.class_weights: tuple[float, ...] | tuple[tuple[float, ...], ...] | None = None
        if class_weights is not None:
            self.class_weights = _check_class_weights(class_weights, self.regions)

    def evaluate(self, view: View) -> Tensor:
        """Σ w_t · CE / Σ w_t over the batch, mean over regions."""
        weights = self._weights(view)
        weighted = view.over_batch((weights * view.sum_by_class(view.cross_entropy)).sum(2))
        total = view.over_batch((weights * view.class_voxels).sum(2))
        return (weighted / total.clamp_min(torch.finfo(total.dtype).tiny)).mean()

    def _weights(self, view: View) -> Tensor:
        """The weights, (G or 1, K)."""
        if self.class_weights is None:
            return view.cross_entropy.new_ones(1, view.num_classes)
        table = [row for row in self.class_weights if isinstance(row, tuple)]
        if not table:
            table = [tuple(w for w in self.class_weights if not isinstance(w, tuple))]
        groups = view.cross_entropy.shape[1]
        if len(table) not in (1, groups) or any(len(row) != view.num_classes for row in table):
            raise ValueError(
                f"class_weights: {self.class_weights} do not fit {view.num_classes} classes"
                + (f" (background and region) of {groups} regions" if self.regions else "")
            )
        # filled on the device: copying a list there would stall the training
        full = view.cross_entropy.new_full
        return torch.stack([torch.stack([full((), w) for w in row]) for row in table])


class BalancedCrossEntropyLoss(SegmentationLoss):
    r"""Balanced cross entropy: a class weighs what the others take of the sample.

    .. math:: L = \operatorname{mean}(w_t \, (-\ln p_t)), \quad w_c = 1 - N_c / N

    N_c of the N voxels of a sample belong to class c.

    Args:
        **options: regions, ignore_label, batch_dice, ddp; see :class:`SegmentationLoss`.

    Shape:
        logits (B, C, \*S), target (B, 1, \*S) or (B, \*S), with ``regions=True`` (B, C, \*S);
        returns a scalar.

    Raises:
        TypeError, ValueError: See :class:`SegmentationLoss`.

    Example:
        >>> import torch
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)
        >>> target[..., :1] = 1
        >>> round(BalancedCrossEntropyLoss()(logits, target).item(), 4)
        0.2599

    References:
        Xie, Tu: Holistically-nested edge detection, ICCV 2015 (arXiv:1504.06375), equation 2; here
        for any number of classes and as a mean over voxels.
    """

    paper = "Xie 2015, arXiv:1504.06375"
    when = "Rare foreground whose share varies from patch to patch."
    when_not = "A patch without foreground gives no gradient: false positives there go unpunished."

    def evaluate(self, view: View) -> Tensor:
        """Mean of w_t · CE."""
        share = view.class_voxels / view.voxels.clamp_min(1)[:, None, None]
        return view.mean_over_voxels((1 - share) * view.sum_by_class(view.cross_entropy))


class TopKLoss(SegmentationLoss):
    r"""Top-k loss: cross entropy of the k % of voxels with the largest.

    .. math:: L = \operatorname{mean} \{ \text{the } \lfloor k\,\% \rfloor \text{ largest }
        -\ln p_t \text{ of the batch} \}

    Voxels that tie at the threshold share what is left of k equally. At least one voxel counts.

    Args:
        k: Percentage, 0 < k ≤ 100.
        **options: regions, ignore_label, batch_dice, ddp; see :class:`SegmentationLoss`.

    Shape:
        logits (B, C, \*S), target (B, 1, \*S) or (B, \*S), with ``regions=True`` (B, C, \*S);
        returns a scalar.

    Raises:
        TypeError, ValueError: An argument is out of range; see also :class:`SegmentationLoss`.

    Example:
        >>> import torch
        >>> logits, target = torch.zeros(1, 2, 4, 5), torch.zeros(1, 1, 4, 5)
        >>> logits[..., 0, 0] = torch.tensor([[0.0, 3.0]])
        >>> round(TopKLoss(k=5)(logits, target).item(), 4)
        3.0486

    References:
        Wu et al.: Bridging category-level and instance-level semantic image segmentation, 2016
        (arXiv:1605.06885), section 3.1 (online bootstrapping). Ignored voxels do not count among
        the k %, unlike in nnU-Net's own top-k loss.
    """

    paper = "Wu 2016, arXiv:1605.06885"
    when = "Easy voxels dominate and the hard ones are trustworthy."
    when_not = "Noisy labels: the hardest voxels are then the wrongly labelled ones."

    def __init__(self, *, k: float = 10, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.k = check_percentage("k", k)
        # not in evaluate: torch before 2.5 cannot compile it
        self._share = Fraction(str(self.k)).limit_denominator(10**6) / 100

    def evaluate(self, view: View) -> Tensor:
        """Mean of the ⌊k %⌋ largest CE of the batch, mean over regions."""
        values = view.cross_entropy.transpose(0, 1).flatten(1)
        counting = view.over_batch(view.voxels.long())
        number = (counting * self._share.numerator // self._share.denominator).clamp_min(1)
        weights = weights_of_largest(values, number.expand(len(values), 1), ddp=self.ddp)
        return (view.over_batch((weights * values).t()) / number).mean()


class DistancePenalizedCrossEntropyLoss(SegmentationLoss):
    r"""Distance-penalised cross entropy: voxels near a boundary count more.

    .. math:: L = \operatorname{mean}((1 + \varphi) \, (-\ln p_t)), \quad \varphi = 1 / d

    d is the distance of a voxel to the nearest voxel with another label; φ = 0 in a patch with one
    label.

    Args:
        spacing: Size of a voxel along each axis; None: distances in voxels.
        **options: regions, ignore_label, batch_dice, ddp; see :class:`SegmentationLoss`.

    Shape:
        logits (B, C, \*S), target (B, 1, \*S) or (B, \*S), with ``regions=True`` (B, C, \*S);
        returns a scalar.

    Raises:
        TypeError, ValueError: An argument is out of range; see also :class:`SegmentationLoss`.

    Example:
        >>> import torch
        >>> logits, target = torch.zeros(1, 2, 2, 2), torch.zeros(1, 1, 2, 2)
        >>> target[..., 0] = 1
        >>> round(DistancePenalizedCrossEntropyLoss()(logits, target).item(), 4)
        1.3863

    References:
        Caliva et al.: Distance map loss penalty term for semantic segmentation, MIDL 2019
        (arXiv:1908.03679). Distances are computed from the labels, for any number of classes.
    """

    paper = "Caliva 2019, arXiv:1908.03679"
    when = "Boundaries matter and classes are of similar size."
    when_not = "Rare foreground: most boundary voxels are background."
    compiles = False

    def __init__(
        self, *, spacing: Sequence[float] | None = None, **options: Unpack[Options]
    ) -> None:
        super().__init__(**options)
        self.spacing = check_spacing(spacing)

    def evaluate(self, view: View) -> Tensor:
        """Mean of (1 + φ) · CE."""
        squared = view.distances("inside", self.spacing, include_background=True).sum(2)
        penalty = torch.where(squared > 0, squared, torch.inf).rsqrt()
        return view.mean_over_voxels((1 + penalty) * view.cross_entropy)


def _check_class_weights(
    weights: Sequence[float] | Sequence[Sequence[float]], regions: bool
) -> tuple[float, ...] | tuple[tuple[float, ...], ...]:
    listed = isinstance(weights, Sequence) and not isinstance(weights, str) and len(weights) > 0
    if regions and listed and all(isinstance(w, Sequence) for w in weights):
        return tuple(check_weights(f"class_weights[{i}]", w) for i, w in enumerate(weights))
    return check_weights("class_weights", weights)
