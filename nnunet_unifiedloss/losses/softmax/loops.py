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

from nnunet_unifiedloss.losses.compiled import ZERO, Array, compiled

Result = TypeVar("Result")

_PER_BIT = np.float32(-1 / math.log(2))
_BLOCK = 1024  # voxels whose channels the cache holds


def split(
    logits: Tensor, label: Tensor, ignored: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`maps.split`; the labels' number of channels stands for an ignored voxel."""
    logits, channels = logits.float(), logits.shape[1]
    others, cross_entropy = logits.new_empty(logits.shape), logits.new_empty(label.shape)
    truth = label.new_empty(label.shape, dtype=torch.uint8 if channels < 256 else torch.int32)
    if not all(_each_image(_to_exponents, logits, label, truth, others, cross_entropy)):
        raise RuntimeError(f"labels {label.min()} to {label.max()} are out of bounds")
    if ignored is not None:
        truth.masked_fill_(ignored, channels)
    error, total = torch.empty_like(cross_entropy), torch.empty_like(cross_entropy)
    _each_image(_to_probabilities, others.exp2_(), truth, error, total)
    return cross_entropy.add_(total.log_()), error, others, truth


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
def _to_exponents(
    logits: Array, label: Array, truth: Array, exponents: Array, margin: Array
) -> bool:
    """(x - max x) / ln 2, and max x - x of the true class; whether all labels are channels."""
    outside = 0
    largest = np.empty(_BLOCK, np.float32)
    for start in range(0, label.shape[1], _BLOCK):
        block = slice(start, min(start + _BLOCK, label.shape[1]))
        wanted, known, found = label[0, block], truth[0, block], margin[0, block]
        for i in range(found.size):
            outside += (wanted[i] < 0) | (wanted[i] >= len(logits))
            known[i] = wanted[i]
            largest[i] = -np.inf
        for channel in range(len(logits)):
            values = logits[channel, block]
            for i in range(found.size):
                value, before = values[i], largest[i]
                largest[i] = value if value > before else before
        for channel in range(len(logits)):
            values, out = logits[channel, block], exponents[channel, block]
            for i in range(found.size):
                below, before = largest[i] - values[i], found[i]
                found[i] = below if np.int32(known[i]) == np.int32(channel) else before
                out[i] = below * _PER_BIT
    return outside == 0


@compiled
def _to_probabilities(others: Array, truth: Array, error: Array, total: Array) -> None:
    """Exponentials to probabilities, 0 for the true class, and for all where none is true."""
    for start in range(0, truth.shape[1], _BLOCK):
        block = slice(start, min(start + _BLOCK, truth.shape[1]))
        known, errors, totals = truth[0, block], error[0, block], total[0, block]
        for i in range(totals.size):
            totals[i] = ZERO
            errors[i] = ZERO
        for channel in range(len(others)):
            values = others[channel, block]
            for i in range(totals.size):
                totals[i] += values[i]
        for channel in range(len(others)):
            values = others[channel, block]
            for i in range(totals.size):
                is_truth = np.int32(known[i]) == np.int32(channel)
                ignored = np.int32(known[i]) == np.int32(len(others))
                value = values[i] / totals[i]
                value = ZERO if is_truth | ignored else value
                values[i] = value
                errors[i] += value


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
