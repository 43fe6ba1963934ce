"""The view of a softmax over mutually exclusive classes."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_unifiedloss.losses.autograd import SquareSums, WithTruth
from nnunet_unifiedloss.losses.elementary import index_dtype
from nnunet_unifiedloss.losses.softmax import SoftmaxSplit
from nnunet_unifiedloss.losses.view import View


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
        self.label = label = target.reshape(target.shape[0], 1, *logits.shape[2:]).long()
        ignored = None
        if ignore_label is not None:
            ignored = label == ignore_label
            self.label = label = label.masked_fill(ignored, 0)
        super().__init__(ignored, logits.shape[1], batch_dice, ddp)
        split = _softmax_split(logits, label, ignored)
        self.cross_entropy, self._error, self._unmasked_p_t, self._others = split

    def _false_positives(self, false_negatives: Tensor) -> Tensor:
        return self._others.flatten(2).sum(2)[:, None]

    @property
    def foreground(self) -> Tensor:
        """1 where the true class is not the background and the voxel counts, else 0, (B, 1, *S)."""
        is_foreground = self.cross_entropy.new_ones(self.num_classes)
        is_foreground[:1] = 0
        rows = self._rows(self.label)
        return is_foreground.expand(*rows.shape[:3], -1).gather(-1, rows).view(self.label.shape)

    @property
    def others(self) -> Tensor:
        """Probability of every class but the true one, (B, 1, C, *S), or of class 1 of two."""
        return self._others[:, None, 1 if self.num_classes == 2 else 0 :]

    @property
    def errors(self) -> Tensor:
        """|y − p| of every class, (B, 1, C, *S)."""
        return self._once("errors", lambda: self._with_truth(self._error, self.p_t_value))

    @property
    def probabilities(self) -> Tensor:
        """Probability of every class, 0 where ignored, (B, 1, C, *S)."""
        return self._with_truth(self.p_t_value, -self.p_t_value)

    def _with_truth(self, values: Tensor, slope: Tensor) -> Tensor:
        maps: Tensor = WithTruth.apply(self._others, self.cross_entropy, values, slope, self.label)
        return maps[:, None]

    @property
    def truth(self) -> Tensor:
        """Index of a voxel's true class, C where it does not count, (B, 1, *S)."""
        truth = self.label.to(index_dtype(self.num_classes))
        return truth if self.ignored is None else truth.add_(self.ignored, alpha=self.num_classes)

    @property
    def one_hot(self) -> Tensor:
        """True for the true class of a voxel that counts, (B, 1, C, *S)."""
        return self._once("one_hot", self._one_hot)

    def _one_hot(self) -> Tensor:
        label = self.label.to(index_dtype(self.num_classes))
        classes = torch.arange(self.num_classes, dtype=label.dtype, device=label.device)
        differences = label - classes.view(-1, *(1 for _ in label.shape[2:]))
        one_hot = differences.logical_not()[:, None]  # vectorised on the CPU, unlike a comparison
        return one_hot if self.ignored is None else one_hot & self.counting

    def squared_errors(self) -> tuple[Tensor, Tensor]:
        """Σ (y−p)² over the voxels of each class and over all others, (B, 1, C) each."""
        inside = self.sum_by_class(self.error.square())
        outside: Tensor = SquareSums.apply(self._others)
        return inside, outside[:, None]

    def sum_by_class(self, values: Tensor) -> Tensor:
        """Sum a map (B, 1, *S) over the voxels of each true class, giving (B, 1, K).

        Rows of voxels are summed one by one first: this bounds the rounding error, and on a GPU it
        keeps millions of atomic additions from queueing for K addresses.
        """
        rows = self._rows(self.label)
        sums = values.new_zeros(*rows.shape[:3], self.num_classes)
        return sums.scatter_add(-1, rows, self._rows(values)).sum(2)

    @staticmethod
    def _rows(values: Tensor) -> Tensor:
        return values.reshape(values.shape[0], 1, -1, values.shape[-1])


def _softmax_split(
    logits: Tensor, label: Tensor, ignored: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    try:
        split: tuple[Tensor, Tensor, Tensor, Tensor] = SoftmaxSplit.apply(logits, label, ignored)
    except RuntimeError as error:  # free of charge, unlike looking at the contents beforehand
        if "out of bounds" not in str(error):
            raise
        raise ValueError(
            f"target: has a label outside of the logits' {logits.shape[1]} channels "
            f"({error}); labels must be 0 to {logits.shape[1] - 1} or the ignore_label"
        ) from error
    return split
