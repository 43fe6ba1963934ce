"""The one view of (logits, target, ignore label) that every loss is computed from.

The softmax or sigmoid is taken once here; so are the soft counts. Each loss is then a short formula
over small tensors, and the summands of a compound loss share the expensive part.

Axes: ``B`` samples, ``G`` groups, ``K`` classes, ``S`` the two or three spatial axes. A group is
one classification problem: labels mode has a single group of ``K = C`` classes; regions mode has
one group of ``K = 2`` classes (background, region) for each region.

An ignored voxel is represented as a perfectly predicted one (1 − p_t = 0 and ln p_t = 0, with zero
gradient), so it adds nothing to any sum of errors; only where voxels are counted it is masked out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_unifiedloss.losses.distributed import sum_over_ranks

_SATURATED_LOGIT = 1e4  # its sigmoid is exactly 1 and its slope exactly 0, in every dtype


class Counts(NamedTuple):
    """Soft counts for each sample, group and class, shape (B, G, K); B = 1 with ``batch_dice``."""

    true_positives: Tensor
    false_positives: Tensor
    false_negatives: Tensor


class View(ABC):
    """Probabilities and counts of one batch; see :class:`LabelView` and :class:`RegionView`.

    Attributes:
        log_p_t: Logarithm of the probability of each voxel's true class, (B, G, *S).
        label: Index of the true class, int64, (B, G, *S); 0 where ignored.
        ignored: True where the voxel does not count, (B, 1, *S), or None.
        num_classes: K.
    """

    def __init__(
        self, label: Tensor, ignored: Tensor | None, num_classes: int, batch_dice: bool, ddp: bool
    ) -> None:
        self.log_p_t: Tensor
        self._error: Tensor
        self.label = label
        self.ignored = ignored
        self.num_classes = num_classes
        self.batch_dice = batch_dice
        self.ddp = ddp
        self._voxels: Tensor | None = None
        self._counts: Counts | None = None
        self._background: Tensor | None = None

    @abstractmethod
    def _false_positives(self, false_negatives: Tensor) -> Tensor:
        """Σ p(1−y) over space, (B, G, K)."""

    def sum_by_class(self, values: Tensor) -> Tensor:
        """Sum a map (B, G, *S) over the voxels of each true class, giving (B, G, K).

        Rows of voxels are summed one by one first: this bounds the rounding error, and on a GPU it
        keeps millions of atomic additions from queueing for K addresses.
        """
        batch, groups, row = *values.shape[:2], values.shape[-1]
        labels = self.label.reshape(batch, groups, -1, row)
        sums = self.log_p_t.new_zeros(*labels.shape[:3], self.num_classes)
        return sums.scatter_add(-1, labels, values.reshape(labels.shape)).sum(2)

    @property
    def voxels(self) -> Tensor:
        """Number of voxels of each class that are not ignored, (B, G, K)."""
        if self._voxels is None:
            ones = self.log_p_t.new_ones(()).expand(self.label.shape)
            self._voxels = self.sum_by_class(
                ones if self.ignored is None else ones.masked_fill(self.ignored, 0)
            )
        return self._voxels

    @property
    def error(self) -> Tensor:
        """1 − p_t, accurate down to the smallest float, (B, G, *S)."""
        error: Tensor = _Error.apply(self.log_p_t, self._error)
        return error

    @property
    def counts(self) -> Counts:
        """Soft true positives, false positives and false negatives.

        They are summed over the batch where ``batch_dice``, and then over ranks where ``ddp``.
        """
        if self._counts is None:
            false_negatives = self.sum_by_class(self.error)
            counts = torch.stack(
                [self.voxels, self._false_positives(false_negatives), false_negatives]
            )
            if self.batch_dice:
                counts = counts.sum(1, keepdim=True)
                counts = sum_over_ranks(counts) if self.ddp else counts
            voxels, false_positives, false_negatives = counts.unbind()
            # rounding can leave a count of nothing just below zero
            true_positives = (voxels - false_negatives).clamp_min(0)
            self._counts = Counts(true_positives, false_positives, false_negatives)
        return self._counts

    @property
    def background(self) -> Tensor:
        """1 where the true class is the background, else 0, (B, G, *S)."""
        if self._background is None:
            self._background = (self.label == 0).to(self.log_p_t.dtype)
        return self._background

    @property
    def cross_entropy(self) -> Tensor:
        """CE = −ln p_t, (B, G, *S)."""
        return -self.log_p_t

    def focal(self, gamma: float) -> Tensor:
        """(1−p_t)^γ · CE, (B, G, *S)."""
        if gamma == 0:
            return self.cross_entropy
        term: Tensor = _FocalTerm.apply(self.log_p_t, self._error, gamma)
        return term

    def mean_over_voxels(self, values: Tensor) -> Tensor:
        """Mean of values (B, G, *S), which must be 0 where ignored, over the voxels that count."""
        if self.ignored is None and not self.ddp:
            return values.mean()
        return self._divide(values.sum(), self.voxels.sum(), self.ddp)

    def mean_over_classes(self, values: Tensor) -> Tensor:
        """Mean of values (B, G, classes in use) that :attr:`counts` gave.

        A sample with every voxel ignored does not count.
        """
        reduce = self.ddp and not self.batch_dice
        if self.ignored is None and not reduce:
            return values.mean()
        counting = self.voxels.sum((1, 2)) > 0
        if self.batch_dice:
            counting = self._any_rank(counting.any(0, keepdim=True))
        weights = counting.to(values.dtype)[:, None, None].expand(values.shape)
        return self._divide((values * weights).sum(), weights.sum(), reduce)

    def _any_rank(self, flag: Tensor) -> Tensor:
        return sum_over_ranks(flag.to(self.log_p_t.dtype)) > 0 if self.ddp else flag

    @staticmethod
    def _divide(numerator: Tensor, denominator: Tensor, over_ranks: bool) -> Tensor:
        if over_ranks:
            numerator, denominator = sum_over_ranks(torch.stack([numerator, denominator])).unbind()
        return numerator / denominator.clamp_min(1)


class LabelView(View):
    """Softmax over mutually exclusive classes; the target is a map of labels.

    Args:
        logits: (B, C, *S).
        target: (B, 1, *S) or (B, *S), integer-valued.
        ignore_label: Voxels with this label do not count.
        batch_dice: Sum the counts over the batch.
        ddp: Sum what is summed over the batch over all ranks too.
    """

    def __init__(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        ignore_label: int | None,
        batch_dice: bool,
        ddp: bool,
    ) -> None:
        label = target.reshape(target.shape[0], 1, *logits.shape[2:]).long()
        ignored = None
        if ignore_label is not None:
            ignored = label == ignore_label
            label = label.masked_fill(ignored, 0)
        super().__init__(label, ignored, logits.shape[1], batch_dice, ddp)
        self.log_p_t, self._error, self.others = _softmax_split(logits, label, ignored)

    def _false_positives(self, false_negatives: Tensor) -> Tensor:
        return self.others.flatten(2).sum(2)[:, None]


class RegionView(View):
    """Sigmoid for each region; regions may overlap and the target has a channel for each.

    Args:
        logits: (B, R, *S).
        target: (B, R, *S) of 0/1; with ``has_ignore`` one channel more, 1 where ignored.
        has_ignore: Whether the target has that last channel.
        batch_dice: Sum the counts over the batch.
        ddp: Sum what is summed over the batch over all ranks too.
    """

    def __init__(
        self, logits: Tensor, target: Tensor, *, has_ignore: bool, batch_dice: bool, ddp: bool
    ) -> None:
        num_regions = logits.shape[1]
        foreground = target[:, :num_regions] != 0
        ignored = target[:, num_regions:] != 0 if has_ignore else None
        if ignored is not None:
            foreground = foreground & ~ignored
        super().__init__(foreground.long(), ignored, 2, batch_dice, ddp)
        logits = logits.to(_accumulation_dtype(logits))
        margin = torch.where(foreground, logits, -logits)
        if ignored is not None:
            margin = margin.masked_fill(ignored, _SATURATED_LOGIT)
        self.log_p_t = functional.logsigmoid(margin)
        self._error = torch.sigmoid(-margin.detach())

    def _false_positives(self, false_negatives: Tensor) -> Tensor:
        return false_negatives.flip(2)  # what one of two classes misses, the other one claims


def _accumulation_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _softmax_split(
    logits: Tensor, label: Tensor, ignored: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    try:
        split: tuple[Tensor, Tensor, Tensor] = _SoftmaxSplit.apply(logits, label, ignored)
    except RuntimeError as error:  # free of charge, unlike looking at the contents beforehand
        if "out of bounds" not in str(error):
            raise
        raise ValueError(
            f"target: has a label outside of the logits' {logits.shape[1]} channels "
            f"({error}); labels must be 0 to {logits.shape[1] - 1} or the ignore_label"
        ) from error
    return split


class _SoftmaxSplit(torch.autograd.Function):
    """(logits, label) → (ln p_t, 1 − p_t, p with the true class's channel set to zero).

    Splitting the true class from the others keeps every digit where autograd would subtract nearly
    equal numbers: 1 − p_t is the sum of the others, and so is the slope of ln p_t. The output
    1 − p_t has no gradient of its own, see :class:`_Error`. Only one tensor of the logits' size is
    kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch's own type)
        logits: Tensor,
        label: Tensor,
        ignored: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        others = torch.log_softmax(logits, 1, dtype=_accumulation_dtype(logits))
        log_p_t = others.gather(1, label)
        others = others.exp_().scatter_(1, label, 0)
        if ignored is not None:
            others = others.masked_fill_(ignored, 0)
        error = others.sum(1, keepdim=True)
        log_p_t = _sharpen(log_p_t, error)
        ctx.mark_non_differentiable(error)
        ctx.set_materialize_grads(False)
        # most tasks have few classes: eight bytes for each label would be a waste
        few = logits.shape[1] <= 256
        ctx.save_for_backward(others, error, label.to(torch.uint8) if few else label)
        ctx.dtype = logits.dtype
        return log_p_t, error, others

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        grad_log_p_t: Tensor | None,
        _: None,
        grad_others: Tensor | None,
    ) -> tuple[Tensor, None, None]:
        others, error, label = ctx.saved_tensors
        slope = torch.zeros_like(error) if grad_log_p_t is None else grad_log_p_t
        if grad_others is None:
            grad = others * -slope
            at_true_class = error * slope
        else:
            # with s = Σ p·grad over the others: p·(grad − slope − s) for them, and
            # (1 − p_t)·(slope + s) − s for the true class
            grad = others * grad_others
            inner = grad.sum(1, keepdim=True)
            outer = inner + slope
            grad.addcmul_(others, outer, value=-1)
            at_true_class = outer.mul_(error).sub_(inner)
            del inner
        return grad.scatter_(1, label.long(), at_true_class).to(ctx.dtype), None, None


class _Error(torch.autograd.Function):
    """1 − p_t as a function of ln p_t, given its value."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        log_p_t: Tensor,
        error: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(log_p_t)
        return error.view_as(error)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, None]:
        (log_p_t,) = ctx.saved_tensors
        return log_p_t.exp().mul_(grad).neg_(), None


class _FocalTerm(torch.autograd.Function):
    """(1−p_t)^γ · CE as a function of ln p_t, given 1 − p_t.

    Its slope −(1−p_t)^γ · (1 + γ·p_t·CE/(1−p_t)) is finite everywhere, also where γ < 1 gives the
    factor (1−p_t)^γ an infinite slope, because CE/(1−p_t) tends to 1 as p_t does.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        log_p_t: Tensor,
        error: Tensor,
        gamma: float,
    ) -> Tensor:
        ctx.save_for_backward(log_p_t, error)
        ctx.gamma = gamma
        return error.pow(gamma).mul_(log_p_t).neg_()

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, None, None]:
        log_p_t, error = ctx.saved_tensors
        slope = log_p_t / error.clamp_min(torch.finfo(error.dtype).tiny)
        slope = slope.mul_(1 - error).mul_(ctx.gamma).sub_(1)
        return slope.mul_(error.pow(ctx.gamma)).mul_(grad), None, None


def _sharpen(log_p_t: Tensor, error: Tensor) -> Tensor:
    """Take ln p_t from the series of ln(1 − error) where the error 1 − p_t is small.

    There the difference of logits has lost its digits. At the threshold ε^¼ the terms left out
    weigh as much as what rounding takes from the difference.
    """
    series = (error / 3).add_(0.5).mul_(error).add_(1).mul_(error).neg_()
    return torch.where(error < torch.finfo(error.dtype).eps ** 0.25, series, log_p_t)
