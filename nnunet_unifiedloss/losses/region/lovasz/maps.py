"""What each voxel adds to the Jaccard losses, by torch's operators: any device, dtype, compiler.

Errors that agree in their leading digits are one level; small images can do without.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_unifiedloss.losses.devices import at_hand

DIGITS = 11  # binary digits of the errors that many voxels are put in order by
OCTAVES = 32  # below 1, that these digits tell apart: errors below 2**-32 share one level
LEVELS = (OCTAVES << DIGITS) + 1
SMALLEST = (127 - OCTAVES) << 23  # bits of that in float32
UNREAD = 23 - DIGITS  # bits of a float32 below these digits
_COUNTED_APART = 64  # histograms of a row and others that a GPU counts in at a time


@torch.no_grad()
def in_order(errors: Tensor, masks: Tensor, weights: Tensor) -> tuple[Tensor]:
    """What each voxel adds to the Jaccard losses when it becomes wrong, after those more wrong.

    Args:
        errors: (B, G, K, V).
        masks: The voxels of each class, (B, G, K, V).
        weights: Of the classes' losses, (G, K).
    """
    steps = torch.empty_like(errors)
    for g, k in itertools.product(*map(range, weights.shape)):
        step = steps_of_class(errors[:, g, k].flatten(), masks[:, g, k].flatten())
        steps[:, g, k] = step.mul_(weights[g, k]).view_as(steps[:, g, k])
    return (steps,)


def steps_of_class(errors: Tensor, mask: Tensor) -> Tensor:
    """The steps of one class's Jaccard loss.

    With P voxels in the mask, i of them and j others wrong already, the loss is
    1 − (P − i)/(P + j); its steps are written out, since their difference would round them away.
    """
    # The bits of floats ≥ 0 are in the order of the floats, and integers sort several times
    # faster. The lowest bit takes the mask along.
    integer = torch.int64 if errors.dtype == torch.float64 else torch.int32
    bits, order = torch.sort((errors.contiguous().view(integer) << 1).add_(mask))
    inside = bits & 1
    right_inside = inside.cumsum(0, dtype=integer)  # P − i
    wrong = torch.arange(len(inside) - 1, -1, -1, dtype=integer, device=mask.device)
    union = wrong.add_(right_inside).clamp_min_(1).to(errors.dtype)  # P + j = i + j + (P − i)
    step = right_inside.to(errors.dtype).div_(union + 1)
    step = torch.where(inside.bool(), 1, step).div_(union)
    return torch.empty_like(step).scatter_(0, order, step)


@torch.no_grad()
def by_levels(
    error: Tensor, others: Tensor, truth: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """As :func:`in_order`, level by level, of one softmax.

    Args:
        error: That of the true class, (B, 1, V).
        others: Those of the other classes, 0 for the true one, (B, 1, K, V).
        truth: The true class, K where a voxel does not count, (B, 1, V).
        weights: Of the classes' losses, (1, K).

    Returns:
        The steps of the true class's errors and those of the others.
    """
    classes = len(weights[0])
    row = _level(error).add_(truth.int() * LEVELS)
    counts = _histogram(row, classes + 1)
    ignored = counts[classes].sum()
    table, steps_of_others = [], torch.empty_like(others)
    at_once = 1 if at_hand(error) else classes  # the CPU's cache holds the voxels of one class
    for first in range(0, classes, at_once):
        some = slice(first, first + at_once)
        inside, level = counts[some], _level(others[:, :, some])
        level += torch.arange(at_once, dtype=level.dtype, device=level.device)[:, None] * LEVELS
        not_others = inside.sum(1, keepdim=True, dtype=inside.dtype) + ignored  # of error 0
        outside = _histogram(level, at_once) - functional.pad(not_others, (0, LEVELS - 1))
        outer, inner = steps_of_levels(outside, inside).mul_(weights[0, some, None])
        steps_of_others[:, :, some] = _look_up(outer, level)
        table.append(inner)
    return _look_up(_with_ignored(*table), row), steps_of_others


@torch.no_grad()
def of_two_classes(error: Tensor, truth: Tensor, weights: Tensor) -> tuple[Tensor]:
    """As :func:`by_levels`; what one of two classes misses, the other one claims.

    Args:
        error: (B, G, V).
        truth: 0 or 1, 2 where a voxel does not count, (B, G, V).
        weights: (G, 2).
    """
    steps = torch.empty_like(error)
    for g, weight in enumerate(weights):
        row = _level(error[:, g]).add_(truth[:, g].int() * LEVELS)
        inside = _histogram(row, 3)[:2]
        outer, inner = steps_of_levels(inside.flip(0), inside).mul_(weight[:, None])
        steps[:, g] = _look_up(_with_ignored(inner + outer.flip(0)), row)
    return (steps,)


def _with_ignored(*steps: Tensor) -> Tensor:
    """The steps of classes (K, levels), then those of the voxels that do not count."""
    return torch.cat([*steps, torch.zeros_like(steps[0][:1])])


def _level(errors: Tensor) -> Tensor:
    """The bits of floats ≥ 0 are in the order of the floats: the leading ones of errors."""
    bits = errors.float().view(torch.int32) - SMALLEST
    return bits.bitwise_right_shift_(UNREAD).clamp_(0, LEVELS - 1)  # NaN would be out of range


def _histogram(levels: Tensor, rows: int) -> Tensor:
    """Number of voxels of each level, for each row of levels, (rows, levels).

    A GPU's additions to one number wait for each other: there neighbours are counted apart.
    """
    apart = 1 if at_hand(levels) else math.gcd(levels.numel(), max(_COUNTED_APART // rows, 1))
    size, index = rows * LEVELS, levels.flatten()
    if apart > 1:
        lane = torch.arange(apart, dtype=index.dtype, device=index.device)
        index = (index.view(-1, apart) + lane * size).flatten()
    counts = torch.zeros(apart * size, dtype=torch.int32, device=levels.device)
    one = counts.new_ones(1).expand(len(index))
    counts.index_add_(0, index, one)
    return counts.view(apart, rows, -1).sum(0, dtype=torch.int32)


def _look_up(table: Tensor, levels: Tensor) -> Tensor:
    return table.flatten().index_select(0, levels.flatten()).view_as(levels)


def steps_of_levels(outside: Tensor, inside: Tensor) -> Tensor:
    """The step of a voxel outside and of one inside the mask, for each level, (2, K, levels).

    Of a level the voxels of the mask are the first to become wrong, or the others are; each voxel
    gets the mean of the two. With I and O of them, P − i = r and P + j = u before, and
    v = u + O, that is (1/u + 1/v)/2 inside and (r − I/2)/(uv) outside; a level's steps add up to
    what it adds to the Jaccard loss.

    Args:
        outside: Number of voxels of each level that are not of the class, (K, levels).
        inside: Number of those that are.
    """
    inside_below, outside_below = _cumulated(torch.stack([inside, outside]))
    right = inside_below + inside * 0.5  # r − I/2
    union = (inside + outside).sum(1, keepdim=True)
    after = union - outside_below.to(right.dtype)  # v
    before = after - outside  # u
    steps = torch.stack([right, (before + after).mul_(0.5)])
    return steps.div_((before * after).clamp_min_(1))


def _cumulated(counts: Tensor) -> Tensor:
    """The counts before each one of its row; as one row, which devices are quicker with."""
    before = counts.flatten().cumsum(0, dtype=counts.dtype).view_as(counts) - counts
    return before - before[..., :1]
