"""The one view of (logits, target, ignore label) that every loss is computed from.

The softmax or sigmoid is taken once here; so are the soft counts. Each loss is then a short formula
over small tensors, and the summands of a compound loss share the expensive part.

Axes: ``B`` samples, ``G`` groups, ``K`` classes, ``S`` the two or three spatial axes. A group is
one classification problem: labels mode has a single group of ``K = C`` classes; regions mode has
one group of ``K = 2`` classes (background, region) for each region.

An ignored voxel is represented as a perfectly predicted one (1 − p_t = 0 and CE = 0, with zero
gradient), so it adds nothing to any sum of errors; only where voxels are counted it is masked out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from nnunet_unifiedloss.losses.autograd import Error, FocalTerm, probability
from nnunet_unifiedloss.losses.distance import squared_distance
from nnunet_unifiedloss.losses.distributed import sum_over_ranks

__all__ = [
    "Counts",
    "View",
]

Shared = TypeVar("Shared")
Spacing = tuple[float, ...] | None


class Counts(NamedTuple):
    """Soft counts for each sample, group and class, shape (B, G, K); B = 1 with ``batch_dice``."""

    true_positives: Tensor
    false_positives: Tensor
    false_negatives: Tensor


class View(ABC):
    """Probabilities and counts of one batch: a ``LabelView`` or a ``RegionView``.

    Attributes:
        cross_entropy: CE = −ln p_t, p_t the probability of a voxel's true class, (B, G, *S).
        ignored: True where the voxel does not count, (B, 1, *S), or None.
        num_classes: K.
        zoom: How many times larger than those of the image its voxels are along each axis, or None.
    """

    cross_entropy: Tensor
    _error: Tensor
    _unmasked_p_t: Tensor | None = None  # without gradient, like the error, where it is at hand

    def __init__(
        self, ignored: Tensor | None, num_classes: int, batch_dice: bool, ddp: bool
    ) -> None:
        self.ignored = ignored
        self.num_classes = num_classes
        self.zoom: tuple[float, ...] | None = None
        self.batch_dice = batch_dice
        self.ddp = ddp
        self._computed: dict[str, Any] = {}

    @abstractmethod
    def _false_positives(self, false_negatives: Tensor) -> Tensor:
        """Σ p(1−y) over space, (B, G, K)."""

    @abstractmethod
    def sum_by_class(self, values: Tensor) -> Tensor:
        """Sum a map (B, G, *S) over the voxels of each true class, giving (B, G, K).

        The map must be 0 where ignored.
        """

    @property
    @abstractmethod
    def errors(self) -> Tensor:
        """|y − p| of every class, (B, G, K, *S)."""

    @property
    @abstractmethod
    def truth(self) -> Tensor:
        """Index of a voxel's true class, K where it does not count, (B, G, *S)."""

    @property
    @abstractmethod
    def one_hot(self) -> Tensor:
        """True for the true class of a voxel that counts, (B, G, K, *S)."""

    @property
    @abstractmethod
    def others(self) -> Tensor:
        """Probability of every class but the true one, 0 there and where ignored, (B, G, K, *S).

        Of two classes the second one only, (B, G, 1, *S): it determines the first one.
        """

    @property
    @abstractmethod
    def probabilities(self) -> Tensor:
        """Probability of every class, 0 where ignored, (B, G, K, *S)."""

    @property
    def p_t(self) -> Tensor:
        """Probability of a voxel's true class, 0 where ignored, (B, G, *S)."""
        # the value of its own keeps the digits; the slope is that of 1 − error
        error = self.error
        return self.p_t_value - (error - error.detach())

    @abstractmethod
    def squared_errors(self) -> tuple[Tensor, Tensor]:
        """Σ (y−p)² over the voxels of each class and over all others, (B, G, K) each."""

    @property
    def class_voxels(self) -> Tensor:
        """Number of voxels that count of each class, (B, G, K)."""
        return self._once("class_voxels", self._count_voxels)

    def _count_voxels(self) -> Tensor:
        ones = torch.ones_like(self._error)
        return self.sum_by_class(ones if self.ignored is None else ones * ~self.ignored)

    def sum_by_batch(self, values: Tensor) -> Tensor:
        """Sum values of each sample over the batch and ranks where ``batch_dice``; B is then 1."""
        return self.over_batch(values)[None] if self.batch_dice else values

    def over_batch(self, values: Tensor) -> Tensor:
        """Sum of values of each sample over the batch, and over ranks where ``ddp``."""
        total = values.sum(0)
        return sum_over_ranks(total) if self.ddp else total

    def distances(self, side: str, spacing: Spacing, *, include_background: bool = False) -> Tensor:
        """Squared distance of the voxels on one side of each class's boundary to the other side.

        It is computed once for all terms of a loss.

        Args:
            side: ``inside``, ``outside`` or ``both``, the voxels whose distance is asked for.
            spacing: Physical size of the image's voxels, or None for distances in voxels.
            include_background: Use the background class too.

        Returns:
            (B, G, classes in use, *S); 0 for voxels not asked for, and without another side.
        """
        mask = self.one_hot if include_background else self.one_hot[:, :, 1:]
        return self._once(
            f"distances {side} {spacing} {include_background}",
            lambda: self.squared_distance(mask, side=side, spacing=spacing),
        )

    def squared_distance(self, mask: Tensor, *, side: str, spacing: Spacing) -> Tensor:
        """As :meth:`distances`, for any mask (B, G, K, *S)."""
        complement = ~mask & self.counting
        of, to = (complement, mask) if side == "outside" else (mask, complement)
        size, dtype = self.voxel_size(spacing), self.cross_entropy.dtype
        return squared_distance(of, to, size, dtype, both=side == "both")

    def voxel_size(self, spacing: Spacing) -> Spacing:
        """The size of this view's voxels, given that of the image's."""
        if spacing is None or self.zoom is None:
            return spacing
        return tuple(size * zoom for size, zoom in zip(spacing, self.zoom, strict=True))

    @property
    def counting(self) -> Tensor:
        """True where a voxel counts, (B, 1, 1, *S)."""
        if self.ignored is None:
            shape = (self._error.shape[0], 1, 1, *self._error.shape[2:])
            return torch.ones(shape, dtype=torch.bool, device=self._error.device)
        return ~self.ignored[:, :, None]

    @property
    def voxels(self) -> Tensor:
        """Number of voxels of each sample that are not ignored, (B,)."""
        if self.ignored is None:
            return self.cross_entropy.new_full(
                self.cross_entropy.shape[:1], self.cross_entropy[0, 0].numel()
            )
        return (~self.ignored).flatten(1).sum(1).to(self.cross_entropy.dtype)

    @property
    def error(self) -> Tensor:
        """1 − p_t, accurate down to the smallest float, (B, G, *S)."""
        error: Tensor = Error.apply(self.cross_entropy, self._error, self.p_t_value)
        return error

    @property
    def counts(self) -> Counts:
        """Soft true positives, false positives and false negatives.

        They are summed over the batch where ``batch_dice``, and then over ranks where ``ddp``.
        """
        return self._once("counts", self._count)

    @property
    def p_t_value(self) -> Tensor:
        """As :attr:`p_t`, without a gradient."""
        return self._once("p_t", self._probability_of_truth)

    def _probability_of_truth(self) -> Tensor:
        known = self._unmasked_p_t
        p_t = probability(self.cross_entropy) if known is None else known
        return p_t if self.ignored is None else p_t.masked_fill(self.ignored, 0)

    def _once(self, name: str, compute: Callable[[], Shared]) -> Shared:
        """What several terms of a loss need is computed when the first one asks."""
        if name not in self._computed:
            self._computed[name] = compute()
        shared: Shared = self._computed[name]
        return shared

    def _count(self) -> Counts:
        false_negatives = self.sum_by_class(self.error)
        true_positives = self.sum_by_class(self.p_t_value)
        # a sum of its own keeps the digits; the slope is that of p_t = 1 − error
        true_positives = true_positives - (false_negatives - false_negatives.detach())
        false_positives = self._false_positives(false_negatives)
        counts = torch.stack([true_positives, false_positives, false_negatives], 1)
        return Counts(*self.sum_by_batch(counts).unbind(1))

    @property
    @abstractmethod
    def foreground(self) -> Tensor:
        """1 where the true class is not the background and the voxel counts, else 0, (B, G, *S)."""

    def focal(
        self, gamma: float, *, weight: float | None = None, asymmetric: bool = False
    ) -> Tensor:
        """w_t · (1−p_t)^γ · CE, (B, G, *S).

        Args:
            gamma: Focusing exponent.
            weight: w_t of foreground voxels, 1 − weight is that of the background; None: 1 for all.
            asymmetric: Leave out the factor (1−p_t)^γ in the foreground.
        """
        if gamma == 0 and weight is None:
            return self.cross_entropy
        weights = (1.0, 1.0) if weight is None else (1 - weight, weight)
        foreground = None if weight is None and not asymmetric else self.foreground
        term: Tensor = FocalTerm.apply(
            self.cross_entropy, self._error, foreground, gamma, weights, asymmetric
        )
        return term

    def mean_over_voxels(self, values: Tensor) -> Tensor:
        """Mean over the voxels that count of a map (B, G, *S), or of its sums by class.

        The map must be 0 where ignored.
        """
        groups = self.cross_entropy.shape[1]
        return self._divide(values.sum(), groups * self.voxels.sum(), self.ddp)

    def mean_over_classes(self, values: Tensor) -> Tensor:
        """Mean of values (B, G, classes in use) that :attr:`counts` gave.

        A sample with every voxel ignored does not count.
        """
        return self.mean_of_groups(values).mean()

    def mean_of_groups(self, values: Tensor) -> Tensor:
        """As :meth:`mean_over_classes`, for each group, (G,)."""
        reduce = self.ddp and not self.batch_dice
        if self.ignored is None and not reduce:
            return values.mean((0, 2))
        counting = self.voxels > 0
        if self.batch_dice:
            counting = self._any_rank(counting.any(0, keepdim=True))
        weights = counting.to(values.dtype)[:, None, None].expand(values.shape)
        return self._divide((values * weights).sum((0, 2)), weights.sum((0, 2)), reduce)

    def _any_rank(self, flag: Tensor) -> Tensor:
        return sum_over_ranks(flag.to(self.cross_entropy.dtype)) > 0 if self.ddp else flag

    @staticmethod
    def _divide(numerator: Tensor, denominator: Tensor, over_ranks: bool) -> Tensor:
        if over_ranks:
            numerator, denominator = sum_over_ranks(torch.stack([numerator, denominator])).unbind()
        return numerator / denominator.clamp_min(1)
