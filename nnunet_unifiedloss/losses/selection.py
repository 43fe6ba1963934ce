"""Selecting the largest values of a batch without sorting it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nnunet_unifiedloss.losses.distributed import sum_over_ranks

_DIGIT = 11  # bits of the numbers that one pass looks at
_PARTS = 64  # histograms that a row is counted in, where it is longer than they are


@torch.no_grad()
def weights_of_largest(values: Tensor, number: Tensor, *, ddp: bool) -> Tensor:
    """1 for the largest values of each row, 0 for the others; ties share what is left equally.

    The bits of floats ≥ 0 are in the order of the floats. From the highest bits on, a histogram
    tells which digit the smallest of the largest values has. So ranks need to exchange histograms
    only, and ``number`` may be a tensor, which ``torch.topk`` does not take.

    Args:
        values: Floats ≥ 0, (rows, columns).
        number: How many are selected in each row, (rows, 1), at least 1.
        ddp: Select among the columns of all ranks.

    Returns:
        Weights of the shape of the values; each row sums to ``number`` (over all ranks).
    """
    double = values.dtype == torch.float64
    bits = values.abs().contiguous().view(torch.int64 if double else torch.int32)
    prefix, remaining, ties = torch.zeros_like(number), number, number
    unread = 63 if double else 31
    while unread:
        digit_bits = min(_DIGIT, unread)
        unread -= digit_bits
        candidates = (bits >> (unread + digit_bits)) == prefix
        digits = (bits >> unread) & (2**digit_bits - 1)
        histogram = _histogram(digits, candidates, 2**digit_bits)
        histogram = sum_over_ranks(histogram) if ddp else histogram
        at_least = histogram.flip(1).cumsum(1).flip(1)
        digit = (at_least >= remaining).sum(1, keepdim=True) - 1
        ties = histogram.gather(1, digit)
        remaining = remaining - (at_least.gather(1, digit) - ties)
        prefix = (prefix << digit_bits) + digit
    share = (remaining / ties).to(values.dtype)
    return (bits > prefix).to(values.dtype) + (bits == prefix).to(values.dtype) * share


def _histogram(digits: Tensor, candidates: Tensor, bins: int) -> Tensor:
    """Number of candidates with each digit, for each row, (rows, bins).

    Parts of a row are counted apart: on a GPU additions to the same number wait for each other.
    """
    parts = math.gcd(digits.shape[1], _PARTS) if digits.shape[1] >= _PARTS * bins else 1
    counts = torch.zeros(len(digits), parts, bins, dtype=torch.int32, device=digits.device)
    shape = (len(digits), parts, -1)
    counts.scatter_add_(2, digits.long().view(shape), candidates.int().view(shape))
    return counts.sum(1, dtype=torch.int32)
