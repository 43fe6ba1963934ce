"""The steps of `maps` on the CPU, in compiled loops; each thread takes a class."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nnunet_unifiedloss.losses.compiled import Array, compiled, share_out
from nnunet_unifiedloss.losses.region.lovasz.maps import LEVELS, SMALLEST, UNREAD

_SMALLEST, _UNREAD = np.int32(SMALLEST), np.int32(UNREAD)
_NO_LEVEL, _LAST = np.int32(0), np.int32(LEVELS - 1)


def by_levels(
    error: Tensor, others: Tensor, truth: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """As :func:`maps.by_levels`."""
    steps, steps_of_others = torch.empty_like(error), torch.empty_like(others)
    errors, labels, of_others = (t.detach()[:, 0].numpy() for t in (error, truth, others))
    inside = _count(errors, labels, weights.shape[1] + 1)
    table = np.zeros_like(inside, np.float32)

    def of_class(item: tuple[int, float]) -> None:
        k, weight = item
        found = steps_of_others[:, 0].numpy()
        _of_class(of_others, k, inside[k], inside[-1].sum(), weight, found, table[k])

    share_out(of_class, list(enumerate(weights[0].tolist())))
    _look_up(errors, labels, table, steps[:, 0].numpy())
    return steps, steps_of_others


def of_two_classes(error: Tensor, truth: Tensor, weights: Tensor) -> tuple[Tensor]:
    """As :func:`maps.of_two_classes`."""
    steps = torch.empty_like(error)

    def of_group(item: tuple[int, list[float]]) -> None:
        g, (weight, other_weight) = item
        errors, labels, found = (t.detach()[:, g].numpy() for t in (error, truth, steps))
        inside, table = _count(errors, labels, 3), np.zeros((3, LEVELS), np.float32)
        outer = np.empty((2, LEVELS), np.float32)
        _of_levels(inside[1], inside[0], weight, outer[0], table[0])
        _of_levels(inside[0], inside[1], other_weight, outer[1], table[1])
        table[:2] += outer[::-1]
        _look_up(errors, labels, table, found)

    share_out(of_group, list(enumerate(weights.tolist())))
    return (steps,)


@compiled
def _level(error: np.float32) -> np.int32:
    level = (np.float32(error).view(np.int32) - _SMALLEST) >> _UNREAD
    level = level if level > _NO_LEVEL else _NO_LEVEL
    found: np.int32 = level if level < _LAST else _LAST
    return found


@compiled
def _count(errors: Array, labels: Array, rows: int) -> Array:
    """Number of voxels of each label and level."""
    counts = np.zeros((rows, LEVELS), np.int32)
    for image in range(len(errors)):
        error, label = errors[image], labels[image]
        for i in range(error.size):
            counts[label[i], _level(error[i])] += 1
    return counts


@compiled
def _of_class(
    others: Array,
    k: int,
    inside: Array,
    ignored: int,
    weight: float,
    steps: Array,
    inner: Array,
) -> None:
    """The steps of a class outside of its mask by voxel, inside by level."""
    outside, outer = np.zeros(LEVELS, np.int32), np.empty(LEVELS, np.float32)
    for image in range(len(others)):
        error = others[image, k]
        for i in range(error.size):
            outside[_level(error[i])] += 1
    outside[0] -= inside.sum() + ignored  # of these the error is 0 here
    _of_levels(outside, inside, weight, outer, inner)
    for image in range(len(others)):
        error, found = others[image, k], steps[image, k]
        for i in range(error.size):
            found[i] = outer[_level(error[i])]


@compiled
def _of_levels(outside: Array, inside: Array, weight: float, outer: Array, inner: Array) -> None:
    """As :func:`maps.steps_of_levels`, times a weight."""
    right, after = 0, inside.sum() + outside.sum()
    for level in range(LEVELS):
        before = after - outside[level]
        scale = weight / max(float(before) * after, 1.0)
        outer[level] = (right + 0.5 * inside[level]) * scale
        inner[level] = 0.5 * (before + after) * scale
        right += inside[level]
        after = before


@compiled
def _look_up(errors: Array, labels: Array, table: Array, steps: Array) -> None:
    for image in range(len(errors)):
        error, label, found = errors[image], labels[image], steps[image]
        for i in range(error.size):
            found[i] = table[label[i], _level(error[i])]
