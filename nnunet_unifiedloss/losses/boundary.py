"""Losses of the distance between predicted and reference boundary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import Unpack

from nnunet_unifiedloss.losses.arguments import check_count, check_flag, check_number, check_spacing
from nnunet_unifiedloss.losses.autograd import SquareSums
from nnunet_unifiedloss.losses.base import Options, SegmentationLoss
from nnunet_unifiedloss.losses.neighbourhood import ErosionSums
from nnunet_unifiedloss.losses.view import View


class BoundaryLoss(SegmentationLoss):
    r"""Boundary loss: probability weighted by the signed distance to the reference boundary.

    .. math:: L = \operatorname{mean}(p \, \varphi), \quad \varphi = \begin{cases}
        d & \text{outside of the object} \\
        -(d - 1) & \text{inside} \\
        0 & \text{the class is absent} \end{cases}

    d is the distance to the other side of the boundary. The mean is over samples, voxels and
    foreground classes. As published, the loss is negative for good predictions, and 1 is taken off
    inside whatever the unit: with voxels smaller than 1 the innermost ones get a positive φ.

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
    compiles = False

    def __init__(
        self, *, spacing: Sequence[float] | None = None, **options: Unpack[Options]
    ) -> None:
        super().__init__(**options)
        self.spacing = check_spacing(spacing)

    def evaluate(self, view: View) -> Tensor:
        """Mean of p · φ."""
        squared = view.distances("both", self.spacing)
        inside = view.one_hot[:, :, 1:] & (squared > 0)
        distance = squared.sqrt()
        signed = torch.where(inside, 1 - distance, distance)
        products = view.probabilities[:, :, 1:] * signed
        return view.mean_over_voxels(products.flatten(2).sum(2) / signed.shape[2])


class HausdorffDTLoss(SegmentationLoss):
    r"""Hausdorff loss by distance transforms.

    .. math:: L = \operatorname{mean}((p - y)^2 (D_p^\alpha + D_y^\alpha))

    D_y is the distance of a voxel to the reference boundary from either side, D_p that to the
    boundary of the prediction p > 0.5; both are 0 for an empty mask.

    Args:
        alpha: Exponent of the distances, > 0; the larger, the more far errors count.
        include_background: Use the background class too.
        spacing: Size of a voxel along each axis; None: distances in voxels.
        **options: regions, ignore_label, batch_dice, ddp; see :class:`SegmentationLoss`.

    Shape:
        logits (B, C, \*S), target (B, 1, \*S) or (B, \*S), with ``regions=True`` (B, C, \*S);
        returns a scalar.

    Raises:
        TypeError, ValueError: An argument is out of range; see also :class:`SegmentationLoss`.

    Example:
        >>> import torch
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
    compiles = False

    def __init__(
        self,
        *,
        alpha: float = 2,
        include_background: bool = False,
        spacing: Sequence[float] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        self.alpha = check_number("alpha", alpha, above=True)
        self.include_background = check_flag("include_background", include_background)
        self.spacing = check_spacing(spacing)

    def evaluate(self, view: View) -> Tensor:
        """Mean of (p − y)² · (D_p^α + D_y^α)."""
        first = 0 if self.include_background else 1
        errors = view.errors[:, :, first:]
        predicted = torch.where(view.one_hot[:, :, first:], errors < 0.5, errors > 0.5)
        predicted &= view.counting
        background = self.include_background
        reference = view.distances("both", self.spacing, include_background=background)
        prediction = view.squared_distance(predicted, side="both", spacing=self.spacing)
        if self.alpha != 2:
            reference, prediction = (d.pow(self.alpha / 2) for d in (reference, prediction))
        weight = prediction.add_(reference)
        return view.mean_over_voxels(SquareSums.apply(errors, weight) / weight.shape[2])


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
        **options: regions, ignore_label, batch_dice, ddp; see :class:`SegmentationLoss`.

    Shape:
        logits (B, C, \*S), target (B, 1, \*S) or (B, \*S), with ``regions=True`` (B, C, \*S);
        returns a scalar.

    Raises:
        TypeError, ValueError: An argument is out of range; see also :class:`SegmentationLoss`.

    Example:
        >>> import torch
        >>> logits, target = torch.zeros(1, 2, 3, 3), torch.ones(1, 1, 3, 3)
        >>> logits[:, 0] = 20  # all wrong: a full square, then a cross, then its centre
        >>> round(HausdorffERLoss(erosions=2)(logits, target).item(), 4)
        0.9111

    References:
        Karimi, Salcudean: Reducing the Hausdorff distance in medical image segmentation with
        convolutional neural networks, IEEE TMI 2019 (arXiv:1904.10030), equations 11 and 12.
    """

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

    def evaluate(self, view: View) -> Tensor:
        """Mean over voxels and classes of Σ_k k^α · e_k."""
        first = 0 if self.include_background else 1
        counting = None if view.ignored is None else view.counting
        errors = view.errors[:, :, first:]
        sums: Tensor = ErosionSums.apply(errors, self.alpha, self.erosions, counting)
        return view.mean_over_voxels(sums.mean(2))


class ShapeAwareLoss(SegmentationLoss):
    r"""Shape-aware loss: wrong voxels cost more, the further the predicted boundary is off.

    .. math:: L = \operatorname{mean}((1 + E) \, (-\ln p_t)), \quad E = \begin{cases}
        \operatorname{mean}_{j \in \text{predicted curve}} d(j, \text{reference curve})
            & \text{wrong voxels} \\ 0 & \text{elsewhere} \end{cases}

    A curve is the foreground voxels that have a face neighbour of another class. E is that of a
    sample, and 0 where one of the curves is empty.

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
    compiles = False

    def __init__(
        self, *, spacing: Sequence[float] | None = None, **options: Unpack[Options]
    ) -> None:
        super().__init__(**options)
        self.spacing = check_spacing(spacing)

    def evaluate(self, view: View) -> Tensor:
        """Mean of (1 + E) · CE."""
        with torch.no_grad():
            # on the CPU the indices of a maximum are there several times sooner than argmax
            predicted = view.probabilities.max(2, keepdim=True).indices
            reference = view.one_hot.to(torch.uint8).max(2, keepdim=True).indices
            wrong = (predicted != reference) & view.counting
            curve = _curve(predicted, view.counting)
            squared = view.squared_distance(
                _curve(reference, view.counting), side="outside", spacing=self.spacing
            )
            length = curve.flatten(2).sum(2).clamp_min(1)
            distance = (squared.sqrt() * curve).flatten(2).sum(2) / length
            penalty = wrong[:, :, 0] * distance.view(*length.shape, *(1 for _ in wrong.shape[3:]))
        return view.mean_over_voxels((1 + penalty) * view.cross_entropy)


def _curve(label: Tensor, counting: Tensor) -> Tensor:
    """Foreground voxels of (B, G, 1, *S) with a face neighbour of another label that counts."""
    edge = torch.zeros_like(label, dtype=torch.bool)
    counting = counting.expand_as(label)
    for axis in range(3, label.ndim):
        length = label.shape[axis] - 1
        low, high = (label.narrow(axis, start, length) for start in (0, 1))
        differ = low != high
        differ &= counting.narrow(axis, 0, length) & counting.narrow(axis, 1, length)
        pad = [0, 0] * (label.ndim - 1 - axis)
        edge |= functional.pad(differ, [*pad, 0, 1]) | functional.pad(differ, [*pad, 1, 0])
    return edge & (label > 0) & counting
