"""The view of a sigmoid for each of several regions."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_unifiedloss.losses.autograd import RegionSums, SigmoidSplit, accumulation_dtype
from nnunet_unifiedloss.losses.elementary import index_dtype
from nnunet_unifiedloss.losses.view import View


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
        foreground = target[:, :num_regions].bool()
        ignored = target[:, num_regions:].bool() if has_ignore else None
        if ignored is not None:
            foreground = foreground & ~ignored
        super().__init__(ignored, 2, batch_dice, ddp)
        self._foreground = foreground.to(accumulation_dtype(logits))
        self.cross_entropy, self._error = SigmoidSplit.apply(logits, self._foreground, ignored)

    def _false_positives(self, false_negatives: Tensor) -> Tensor:
        return false_negatives.flip(2)  # what one of two classes misses, the other one claims

    @property
    def foreground(self) -> Tensor:
        """1 where the true class is not the background and the voxel counts, else 0, (B, R, *S)."""
        return self._foreground

    @property
    def errors(self) -> Tensor:
        """|y − p| of background and region, which are the same, (B, R, 2, *S)."""
        error = self._once("errors", lambda: self.error)
        return error[:, :, None].expand(-1, -1, 2, *error.shape[2:])

    @property
    def others(self) -> Tensor:
        """Probability of the region in the background, (B, R, 1, *S)."""
        return (self.error * (1 - self._foreground))[:, :, None]

    @property
    def probabilities(self) -> Tensor:
        """Probability of background and region, 0 where ignored, (B, R, 2, *S)."""
        error, p_t = self.error, self.p_t
        maps = [error.lerp(p_t, is_class) for is_class in (1 - self._foreground, self._foreground)]
        return torch.stack(maps, 2)

    @property
    def truth(self) -> Tensor:
        """0 for background, 1 for the region, 2 where a voxel does not count, (B, R, *S)."""
        truth = self._foreground.to(index_dtype(2))
        return truth if self.ignored is None else truth.add_(self.ignored, alpha=2)

    @property
    def one_hot(self) -> Tensor:
        """True for the true one of {background, region} where a voxel counts, (B, R, 2, *S)."""
        foreground = self._foreground.bool()
        return torch.stack([~foreground, foreground], 2) & self.counting

    def squared_errors(self) -> tuple[Tensor, Tensor]:
        """Σ (y−p)² over the voxels of each class and over all others, (B, R, 2) each."""
        inside = self.sum_by_class(self.error.square())
        return inside, inside.flip(2)

    def sum_by_class(self, values: Tensor) -> Tensor:
        """Sum a map (B, R, *S) over the background and the foreground voxels, giving (B, R, 2)."""
        sums: Tensor = RegionSums.apply(values, self._foreground)
        return sums
