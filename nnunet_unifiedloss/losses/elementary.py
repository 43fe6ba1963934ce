"""Elementary steps on whole maps: functions that torch's own are slower or less exact than."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def index_dtype(classes: int) -> torch.dtype:
    """Of maps of classes' indices and one more: eight bytes for each voxel would be a waste."""
    return torch.uint8 if classes < 256 else torch.int32


def exp(exponents: Tensor) -> Tensor:
    """In place: e^x as 2^(x · log₂ e), on the CPU more than twice as fast as torch's own."""
    return exponents.mul_(1 / math.log(2)).exp2_()


def log1p(values: Tensor) -> Tensor:
    """In place: ln(1 + x) for 0 ≤ x ≤ 1, which torch does not vectorise on the CPU.

    What 1 + x rounds away is given back by the factor x / ((1 + x) − 1), after Kahan; where nothing
    is left of x, ln(1 + x) is x − x²/2. Channel by channel, which takes less memory.
    """
    for index in range(values.shape[1]):
        channel = values[:, index]
        total = channel + 1
        left = (total - 1).clamp_min_(torch.finfo(values.dtype).tiny)
        series = torch.addcmul(channel, channel, channel, value=-0.5)
        channel.mul_(total.log_()).div_(left).clamp_(min=series)
    return values


def sum_channels(maps: Tensor, weights: Tensor | None = None) -> Tensor:
    """Σ_c weights_c · maps_c, (B, 1, *S): channel by channel, without a product of their size."""
    channels = [maps[:, c : c + 1] for c in range(maps.shape[1])]
    if weights is None:
        total = channels[0].clone()
        for channel in channels[1:]:
            total += channel
        return total
    total = channels[0] * weights[:, :1]
    for c, channel in enumerate(channels[1:], 1):
        total.addcmul_(channel, weights[:, c : c + 1])
    return total


def sharpen(cross_entropy: Tensor, error: Tensor) -> Tensor:
    """Give CE = −ln(1 − error) back the digits that a difference of logits loses at small errors.

    The truth is at least e + e²/2 and at most (e + e²/2)/(1 − e² − e⁴), which there are nearly one;
    where e is near 1 it is of no effect: 10³⁸ or so. Clamping is vectorised on every device, unlike
    a choice voxel by voxel.
    """
    lower = torch.addcmul(error, error, error, value=0.5)
    square = error * error
    remainder = square.addcmul_(square, square).neg_().add_(1)
    remainder = remainder.clamp_min_(torch.finfo(error.dtype).tiny)
    return cross_entropy.clamp_(lower, remainder.reciprocal_().mul_(lower))
