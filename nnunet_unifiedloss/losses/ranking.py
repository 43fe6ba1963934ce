"""Ranking of values ≥ 0 by histograms instead of sorting.

The bits of floats ≥ 0, read as integers, are in the order of the floats, so the leading bits are
bins. Counting is several times faster than sorting on a GPU, and ranks of distributed training only
have to exchange histograms.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_unifiedloss.losses.distributed import sum_over_ranks

_DIGIT = 11  # bits that one pass of weights_of_largest looks at
_CONCURRENT = 64  # histograms that a GPU fills side by side, so that few additions collide


def histogram(
    index: Tensor, bins: int, rows: int, counted: Tensor, copies: int | None = None
) -> Tensor:
    """Count the elements of each bin, (rows, bins), as int32.

    Args:
        index: row · bins + bin of each element, int32 or int64, any shape.
        bins: Number of bins of a row.
        rows: Number of rows.
        counted: True for the elements that count, broadcastable to the shape of ``index``.
        copies: Number of histograms to fill side by side; by default what is fast on the device.
    """
    if copies is None:
        copies = 1 if index.device.type == "cpu" else copies_on_a_gpu(rows)
    flat, size = index.flatten(), rows * bins
    if copies > 1:
        position = torch.arange(flat.shape[0], dtype=flat.dtype, device=flat.device)
        flat = flat + position % copies * size
    counts = torch.zeros(copies * size, dtype=torch.int32, device=index.device)
    counts = counts.index_add(0, flat, counted.int().expand(index.shape).flatten())
    return counts.view(copies, rows, bins).sum(0, dtype=torch.int32)


def copies_on_a_gpu(rows: int) -> int:
    """Number of histograms in which additions to one bin rarely wait for each other."""
    return max(_CONCURRENT // rows, 1)


@torch.no_grad()
def weights_of_largest(values: Tensor, number: Tensor, *, ddp: bool) -> Tensor:
    """1 for the largest values of each row, 0 for the others; ties share what is left equally.

    From the highest bits on, a histogram tells which digit the smallest selected value has.

    Args:
        values: Floats ≥ 0, (rows, columns).
        number: How many to select in each row, (rows, 1), ≥ 1; torch.topk takes no tensor.
        ddp: Select among the columns of all ranks.

    Returns:
        Weights of the shape of ``values``; each row sums to ``number`` (over all ranks).
    """
    rows = values.shape[0]
    double = values.dtype == torch.float64
    bits = values.abs().contiguous().view(torch.int64 if double else torch.int32)
    row = torch.arange(rows, device=values.device)[:, None]
    prefix, remaining, ties = torch.zeros_like(number), number, number
    unread = 63 if double else 31
    while unread:
        digit_bits = min(_DIGIT, unread)
        unread -= digit_bits
        bins = 2**digit_bits
        candidates = (bits >> (unread + digit_bits)) == prefix
        digits = ((bits >> unread) & (bins - 1)) + row * bins
        counts = histogram(digits, bins, rows, candidates)
        counts = sum_over_ranks(counts) if ddp else counts
        at_least = counts.flip(1).cumsum(1).flip(1)
        digit = (at_least >= remaining).sum(1, keepdim=True) - 1
        ties = counts.gather(1, digit)
        remaining = remaining - (at_least.gather(1, digit) - ties)
        prefix = (prefix << digit_bits) + digit
    share = (remaining / ties).to(values.dtype)
    return (bits > prefix).to(values.dtype) + (bits == prefix).to(values.dtype) * share
