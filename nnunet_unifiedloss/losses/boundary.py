"""Losses of the distance between predicted and reference boundary."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import Unpack

from nnunet_unifiedloss.losses.base import Options, SegmentationLoss
from nnunet_unifiedloss.losses.checks import check_count, check_flag, check_number, check_spacing
from nnunet_unifiedloss.losses.distance import squared_distance
from nnunet_unifiedloss.losses.functional import power, safe_divide, shift
from nnunet_unifiedloss.losses.probabilities import Batch, per_voxel


class SpacingOptions(Options, total=False):
    """Options of losses of distances."""

    spacing: Sequence[float] | None


class DistanceLoss(SegmentationLoss, abstract=True):
    """Base class of losses of distances.

    Args:
        spacing: Size of the image's voxels along each axis; None: distances in voxels. Outputs of
            deep supervision have larger voxels.
        **options: See :class:`SegmentationLoss`.
    """

    family = "boundary"
    compiles = False

    def __init__(
        self, *, spacing: Sequence[float] | None = None, **options: Unpack[Options]
    ) -> None:
        super().__init__(**options)
        self.spacing = check_spacing(spacing)

    def squared_distance(
        self, of: Tensor, to: Tensor, batch: Batch, *, both: bool = False
    ) -> Tensor:
        """Squared distance of some voxels to the nearest of others, 0 elsewhere, (…, *S)."""
        axes = batch.error.ndim - 2
        spacing, zoom = self.spacing or (1.0,) * axes, (batch.zoom or (1.0,) * axes)
        if len(spacing) != axes:
            raise ValueError(
                f"spacing: has {len(spacing)} numbers for images of {axes} axes, got {spacing}"
            )
        size = tuple(map(operator.mul, spacing, zoom)) if self.spacing else spacing
        return squared_distance(of, to, size, batch.error.dtype, both=both)

    def squared_distance_to_other_side(self, mask: Tensor, batch: Batch) -> Tensor:
        """Squared distance to the other side of a mask's boundary, 0 where ignored, (…, *S)."""
        complement = ~mask & batch.counted[:, :, None]
        return self.squared_distance(mask, complement, batch, both=True)


class BoundaryLoss(DistanceLoss):
    r"""Boundary loss: probability weighted by the signed distance to the reference boundary.

    .. math:: L = \operatorname{mean}(p \, \varphi), \quad \varphi = \begin{cases}
        d & \text{outside of the object} \\
        -(d - 1) & \text{inside} \\
        0 & \text{the class is absent} \end{cases}

    d is the distance to the other side of the boundary. The mean is over samples, voxels and
    classes in use. As published, the loss is negative for good predictions, and 1 is subtracted
    inside whatever the unit: if voxels are smaller than 1, those next to the boundary get φ > 0.

    Args:
        include_background: Use the background class too, as the authors do for several classes.

    Example:
        >>> logits, target = torch.zeros(1, 2, 1, 5), torch.zeros(1, 1, 1, 5)
        >>> target[..., :2] = 1  # φ = -1, 0, 1, 2, 3
        >>> round(BoundaryLoss()(logits, target).item(), 4)
        0.5

    References:
        Kervadec et al.: Boundary loss for highly unbalanced segmentation, MIDL 2019
        (arXiv:1812.07032), equation 5, with the distances of the authors' code.
    """

    paper = "Kervadec 2019, arXiv:1812.07032"
    when = "Beside an overlap loss: pulls far-away false positives in."
    when_not = "Alone: an empty prediction is a local optimum."

    def __init__(
        self, *, include_background: bool = False, **options: Unpack[SpacingOptions]
    ) -> None:
        super().__init__(**options)
        self.include_background = check_flag("include_background", include_background)

    def evaluate(self, batch: Batch) -> Tensor:
        """Mean of p · φ."""
        first = 0 if self.include_background else 1
        mask = batch.one_hot[:, :, first:]
        squared = self.squared_distance_to_other_side(mask, batch)
        distance = squared.sqrt()
        signed = torch.where(mask & (squared > 0), 1 - distance, distance)
        products = batch.probabilities[:, :, first:] * signed
        return batch.mean_over_voxels(products.mean(2))


class HausdorffDTLoss(DistanceLoss):
    r"""Hausdorff loss by distance transforms.

    .. math:: L = \operatorname{mean}((p - y)^2 (D_p^\alpha + D_y^\alpha))

    D_y is the distance of a voxel to the reference boundary from either side, D_p that to the
    boundary of the prediction p > 0.5; both are 0 for an empty mask.

    Args:
        alpha: Exponent of the distances, > 0; the larger, the more far errors count.
        include_background: Use the background class too.

    Example:
        >>> logits, target = torch.zeros(1, 2, 1, 4), torch.zeros(1, 1, 1, 4)
        >>> target[..., :2] = 1  # D_y² = 4, 1, 1, 4
        >>> round(HausdorffDTLoss()(logits, target).item(), 4)
        0.625

    References:
        Karimi, Salcudean: Reducing the Hausdorff distance in medical image segmentation with
        convolutional neural networks, IEEE TMI 2019 (arXiv:1904.10030), equation 8.
    """

    paper = "Karimi 2019, arXiv:1904.10030"
    when = "Beside an overlap loss, where the Hausdorff distance is judged."
    when_not = "Alone, or with noisy labels: single far voxels dominate."

    def __init__(
        self,
        *,
        alpha: float = 2,
        include_background: bool = False,
        **options: Unpack[SpacingOptions],
    ) -> None:
        super().__init__(**options)
        self.alpha = check_number("alpha", alpha, above=True)
        self.include_background = check_flag("include_background", include_background)

    def evaluate(self, batch: Batch) -> Tensor:
        """Mean of (p − y)² · (D_p^α + D_y^α)."""
        first = 0 if self.include_background else 1
        errors, reference = batch.errors[:, :, first:], batch.one_hot[:, :, first:]
        prediction = torch.where(reference, errors < 0.5, errors > 0.5) & batch.counted[:, :, None]
        masks = torch.stack([prediction, reference])
        distances = power(self.squared_distance_to_other_side(masks, batch), self.alpha / 2)
        return batch.mean_over_voxels((errors.square() * distances.sum(0)).mean(2))


class HausdorffERLoss(SegmentationLoss):
    r"""Hausdorff loss by erosions: what survives many of them is far from the boundary.

    .. math:: L = \operatorname{mean} \sum_{k=1}^{K} k^\alpha e_k, \quad e_0 = (p - y)^2, \quad
        e_k = \frac{r_k}{\max r_k}, \quad r_k = \max(e_{k-1} * h - \tfrac{1}{2}, 0)

    h is the normalised cross of a voxel and its face neighbours. The maximum is that of a sample
    and class; where nothing survives, e_k = 0. All of it is differentiated, unlike in
    implementations that erode outside of the graph.

    Args:
        alpha: Exponent of the number of erosions, > 0.
        erosions: K, a whole number ≥ 1.
        include_background: Use the background class too.

    Example:
        >>> logits, target = torch.zeros(1, 2, 3, 3), torch.ones(1, 1, 3, 3)
        >>> logits[:, 0] = 20  # all wrong: a full square, then a cross, then its centre
        >>> round(HausdorffERLoss(erosions=2)(logits, target).item(), 4)
        0.9111

    References:
        Karimi, Salcudean: Reducing the Hausdorff distance in medical image segmentation with
        convolutional neural networks, IEEE TMI 2019 (arXiv:1904.10030), equations 11 and 12.
    """

    family = "boundary"
    paper = "Karimi 2019, arXiv:1904.10030"
    when = "As HausdorffDT, without distance transforms."
    when_not = "Single wrong voxels, and thin rods in 3-D: the first erosion removes them."

    def __init__(
        self,
        *,
        alpha: float = 2,
        erosions: int = 10,
        include_background: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        self.alpha = check_number("alpha", alpha, above=True)
        self.erosions = check_count("erosions", erosions)
        self.include_background = check_flag("include_background", include_background)

    def evaluate(self, batch: Batch) -> Tensor:
        """Mean over voxels and classes of Σ_k k^α · e_k."""
        e = batch.errors[:, :, 0 if self.include_background else 1 :].square()
        total = torch.zeros_like(e[..., 0].flatten(3).sum(3))
        for k in range(1, self.erosions + 1):
            rest = (mean_of_cross(e) - 0.5).relu() * batch.counted[:, :, None]
            e = safe_divide(rest, per_voxel(rest.flatten(3).amax(3), rest))
            total = total + k**self.alpha * e.flatten(3).sum(3)
        return batch.mean_over_voxels(total.mean(2))


class ShapeAwareLoss(DistanceLoss):
    r"""Shape-aware loss: wrong voxels cost more, the further the predicted boundary is off.

    .. math:: L = \operatorname{mean}((1 + E) \, (-\ln p_t)), \quad E = \begin{cases}
        \operatorname{mean}_{j \in \text{predicted curve}} d(j, \text{reference curve})
            & \text{wrong voxels} \\ 0 & \text{elsewhere} \end{cases}

    A curve is the foreground voxels that have a face neighbour of another class. E is that of a
    sample, and 0 where one of the curves is empty.

    Example:
        >>> logits, target = torch.zeros(1, 2, 1, 5), torch.zeros(1, 1, 1, 5)
        >>> target[..., :2] = 1
        >>> logits[:, 1, :, :4] = 1  # two voxels too long: curves at 1 and 3
        >>> round(ShapeAwareLoss()(logits, target).item(), 4)
        1.8398

    References:
        Al Arif et al.: Shape-aware deep convolutional neural network for vertebrae segmentation,
        MSKI 2017, the shape-aware term.
    """

    paper = "Al Arif 2017, MSKI"
    when = "Single compact objects whose outline matters."
    when_not = "Many scattered lesions: one mean distance says little about each."

    def evaluate(self, batch: Batch) -> Tensor:
        """Mean of (1 + E) · CE."""
        with torch.no_grad():
            # on the CPU the indices of max are several times faster than argmax
            predicted, reference = batch.probabilities.max(2).indices, batch.truth
            wrong = (predicted != reference) & batch.counted
            curve, to = (_curve(labels, batch.counted) for labels in (predicted, reference))
            distance = self.squared_distance(~to & batch.counted, to, batch).sqrt()
            length = curve.flatten(2).sum(2).clamp_min(1)
            mean_distance = (distance * curve).flatten(2).sum(2) / length
            penalty = wrong * per_voxel(mean_distance, wrong)
        return batch.mean_over_voxels((1 + penalty) * batch.cross_entropy)


class DistancePenalizedCrossEntropyLoss(DistanceLoss):
    r"""Distance-penalised cross entropy: voxels near a boundary count more.

    .. math:: L = \operatorname{mean}((1 + \varphi) \, (-\ln p_t)), \quad \varphi = 1 / d

    d is the distance of a voxel to the nearest voxel with another label; φ = 0 in a patch with one
    label.

    Example:
        >>> logits, target = torch.zeros(1, 2, 2, 2), torch.zeros(1, 1, 2, 2)
        >>> target[..., 0] = 1
        >>> round(DistancePenalizedCrossEntropyLoss()(logits, target).item(), 4)
        1.3863

    References:
        Caliva et al.: Distance map loss penalty term for semantic segmentation, MIDL 2019
        (arXiv:1908.03679). Distances are computed from the labels, for any number of classes.
    """

    family = "distribution"
    paper = "Caliva 2019, arXiv:1908.03679"
    when = "Boundaries matter and classes are of similar size."
    when_not = "Rare foreground: most boundary voxels are background."

    def evaluate(self, batch: Batch) -> Tensor:
        """Mean of (1 + φ) · CE."""
        others = ~batch.one_hot & batch.counted[:, :, None]
        squared = self.squared_distance(batch.one_hot, others, batch)
        nearest = squared.sum(2)  # a voxel is in one class
        penalty = torch.where(nearest > 0, nearest, torch.inf).rsqrt()
        return batch.mean_over_voxels((1 + penalty) * batch.cross_entropy)


def mean_of_cross(values: Tensor) -> Tensor:
    """Mean over each voxel of (B, G, K, *S) and its face neighbours, 0 outside of the image."""
    total = values
    for axis in range(3, values.ndim):
        total = total + shift(values, axis, 1) + shift(values, axis, -1)
    return total / (2 * (values.ndim - 3) + 1)


def _curve(label: Tensor, counted: Tensor) -> Tensor:
    """Foreground voxels of (B, G, *S) with a face neighbour of another label that counts."""
    edge = torch.zeros_like(label, dtype=torch.bool)
    for axis, by in itertools.product(range(2, label.ndim), (1, -1)):
        neighbour_counts = shift(counted.int(), axis, by).bool()
        edge |= (shift(label, axis, by) != label) & neighbour_counts
    return edge & (label > 0) & counted
