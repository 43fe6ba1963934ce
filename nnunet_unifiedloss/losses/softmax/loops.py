"""The softmax's steps on the CPU, in compiled loops over blocks of voxels; see `maps`.

The loops' arrays are those of an image, (channels, voxels) or (1, voxels).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from nnunet_unifiedloss.losses.compiled import (
    ONE,
    ZERO,
    Array,
    compiled,
    logarithm,
    power_of_two,
)
from nnunet_unifiedloss.losses.elementary import index_dtype

Result = TypeVar("Result")

_HALF, _TINY = np.float32(0.5), np.finfo(np.float32).tiny
_PER_BIT = np.float32(-1 / math.log(2))
_BLOCK = 1024  # voxels whose channels the cache holds


def split(
    logits: Tensor, label: Tensor, ignored: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As :func:`maps.split`; the labels' number of channels stands for an ignored voxel."""
    logits, channels = logits.float(), logits.shape[1]
    truth = label.new_empty(label.shape, dtype=index_dtype(channels))
    marks = torch.zeros_like(label, dtype=torch.bool) if ignored is None else ignored
    cross_entropy, error, p_t = (logits.new_empty(label.shape) for _ in range(3))
    others = logits.new_empty(logits.shape)
    found = truth, cross_entropy, error, p_t, others
    if not all(_each_image(_split, logits, label, marks, *found)):
        raise RuntimeError(f"labels {label.min()} to {label.max()} are out of bounds")
    return cross_entropy, error, p_t, others, truth


def slopes(
    others: Tensor,
    truth: Tensor,
    error: Tensor,
    p_t: Tensor,
    slope: Tensor,
    grad_others: Tensor | None,
) -> Tensor:
    """As :func:`maps.slopes`."""
    found, grad = torch.empty_like(others), grad_others
    if grad is None:
        grad = others.new_zeros(1).expand(others.shape)
    if not any(grad.stride()[2:]):  # a number for each class, as sums give it
        grad = grad[(slice(None), slice(None), *(slice(1) for _ in grad.shape[2:]))]
    _each_image(_slopes, others, truth, error, p_t, slope, grad, found)
    return found


def _each_image(loop: Callable[..., Result], *tensors: Tensor) -> list[Result]:
    arrays = (tensor.detach().flatten(2).contiguous().numpy() for tensor in tensors)
    return [loop(*image) for image in zip(*arrays, strict=True)]


@compiled
def _split(
    logits: Array,
    label: Array,
    ignored: Array,
    truth: Array,
    cross_entropy: Array,
    error: Array,
    p_t: Array,
    others: Array,
) -> bool:
    """The softmax of an image; whether all labels are channels."""
    outside = 0
    largest, total = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    for start in range(0, label.shape[1], _BLOCK):
        block = slice(start, min(start + _BLOCK, label.shape[1]))
        wanted, known, marks = label[0, block], truth[0, block], ignored[0, block]
        for i in range(known.size):
            outside += (wanted[i] < 0) | (wanted[i] >= len(logits))
            known[i] = wanted[i]
        margin, of_truth = cross_entropy[0, block], p_t[0, block]  # which become CE and p_t
        _to_exponentials(logits, block, known, largest, total, others, margin, of_truth)
        for i in range(known.size):  # from here on no channel is that of an ignored voxel
            known[i] = len(logits) if marks[i] else known[i]
        _to_probabilities(others, block, known, total, error[0, block])
        _of_truth(total, marks, error[0, block], margin, of_truth)
    return outside == 0


@compiled
def _to_exponentials(
    logits: Array,
    block: slice,
    truth: Array,
    largest: Array,
    total: Array,
    exponentials: Array,
    margin: Array,
    of_truth: Array,
) -> None:
    """exp(x - max x) and their sum; for the true class also max x - x."""
    for i in range(truth.size):
        largest[i], total[i] = -np.inf, ZERO
    for channel in range(len(logits)):
        values = logits[channel, block]
        for i in range(truth.size):
            value, before = values[i], largest[i]
            largest[i] = value if value > before else before
    for channel in range(len(logits)):
        values, out = logits[channel, block], exponentials[channel, block]
        for i in range(truth.size):
            below, before, other = largest[i] - values[i], margin[i], of_truth[i]
            value = power_of_two(below * _PER_BIT)
            is_truth = np.int32(truth[i]) == np.int32(channel)
            margin[i] = below if is_truth else before
            of_truth[i] = value if is_truth else other
            out[i] = value
            total[i] += value


@compiled
def _to_probabilities(
    others: Array, block: slice, truth: Array, total: Array, error: Array
) -> None:
    """Exponentials to probabilities, 0 for the true class, and for all where none is true."""
    for i in range(error.size):
        error[i] = ZERO
    for channel in range(len(others)):
        values = others[channel, block]
        for i in range(error.size):
            is_truth = np.int32(truth[i]) == np.int32(channel)
            ignored = np.int32(truth[i]) == np.int32(len(others))
            value = values[i] / total[i]
            value = ZERO if is_truth | ignored else value
            values[i] = value
            error[i] += value


@compiled
def _of_truth(total: Array, ignored: Array, error: Array, margin: Array, p_t: Array) -> None:
    """CE, as :func:`elementary.sharpen` has it, in place of its margin, and p_t."""
    for i in range(error.size):
        e = error[i]
        square, lower = e * e, e + _HALF * e * e
        remainder = ONE - square - square * square
        upper = lower / (remainder if remainder > _TINY else _TINY)
        value = margin[i] + logarithm(total[i])
        value = value if value > lower else lower  # with NaN this one, which is NaN too
        margin[i] = upper if value > upper else value
        p_t[i] = ONE if ignored[i] else p_t[i] / total[i]


@compiled
def _slopes(
    others: Array, truth: Array, error: Array, p_t: Array, slope: Array, grad: Array, out: Array
) -> None:
    """The slopes of the logits; the others' gradient is a map or a number for each class."""
    inner, at_truth = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    same = np.empty(_BLOCK, np.float32)
    for start in range(0, truth.shape[1], _BLOCK):
        block = slice(start, min(start + _BLOCK, truth.shape[1]))
        known, errors, ps, own = truth[0, block], error[0, block], p_t[0, block], slope[0, block]
        for i in range(own.size):
            inner[i] = ZERO
        for channel in range(len(others)):
            values, weights = others[channel, block], _weights(grad, channel, block, same)
            for i in range(own.size):
                inner[i] += values[i] * weights[i]
        for i in range(own.size):
            at_truth[i] = -(errors[i] * own[i] + ps[i] * inner[i])
            inner[i] -= own[i]
        for channel in range(len(others)):
            values, weights = others[channel, block], _weights(grad, channel, block, same)
            found = out[channel, block]
            for i in range(own.size):
                value, special = (weights[i] - inner[i]) * values[i], at_truth[i]
                found[i] = special if np.int32(known[i]) == np.int32(channel) else value


@compiled
def _weights(grad: Array, channel: int, block: slice, same: Array) -> Array:
    """A channel's gradient in a block of voxels, where it may be the same."""
    if grad.shape[1] > 1:
        return grad[channel, block]
    for i in range(same.size):
        same[i] = grad[channel, 0]
    return same
