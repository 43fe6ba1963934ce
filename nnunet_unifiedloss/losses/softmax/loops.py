"""The softmax's steps on the CPU, in compiled loops over blocks of voxels; see `maps`.

The loops' arrays are those of an image, (channels, voxels) or (voxels,).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nnunet_unifiedloss.losses.compiled import ZERO, Array, Result, compiled, in_threads, shares

_PER_BIT = np.float32(-1 / math.log(2))
_BLOCK = 1024  # voxels whose channels the cache holds


def split(
    logits: Tensor, label: Tensor, ignored: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`maps.split`."""
    logits, channels = logits.float(), logits.shape[1]
    others, cross_entropy = logits.new_empty(logits.shape), logits.new_empty(label.shape)
    truth = torch.empty(label.shape, dtype=torch.uint8 if channels < 256 else torch.int32)
    if not all(_run(_to_exponents, logits, label, truth, others, cross_entropy)):
        raise RuntimeError(f"labels {label.min()} to {label.max()} are out of bounds")
    if ignored is not None:
        truth.masked_fill_(ignored, channels)
    error, total = torch.empty_like(cross_entropy), torch.empty_like(cross_entropy)
    _run(_to_probabilities, others.exp2_(), truth, error, total)
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
    slopes, grad = torch.empty_like(others), grad_others
    if grad is None:
        grad = others.new_zeros(1).expand(others.shape)
    if not any(grad.stride()[2:]):  # a number for each class, as sums give it
        grad = grad[(slice(None), slice(None), *(slice(1) for _ in grad.shape[2:]))]
    _run(_slopes, others, truth, error, p_t, slope, grad, slopes)
    return slopes


def _run(loop: Callable[..., Result], *tensors: Tensor) -> list[Result]:
    """Run a loop on the images' voxels, shared out among threads."""
    arrays = [tensor.detach().flatten(2).contiguous().numpy() for tensor in tensors]

    def of_share(job: tuple[int, tuple[int, int]]) -> Result:
        image, share = job
        return loop(share, *(array[image] for array in arrays))

    return in_threads(
        of_share, itertools.product(range(len(arrays[0])), shares(arrays[0].shape[2]))
    )


@compiled
def _to_exponents(
    share: tuple[int, int],
    logits: Array,
    label: Array,
    truth: Array,
    exponents: Array,
    margin: Array,
) -> bool:
    """(x - max x) / ln 2, and max x - x of the true class; whether all labels are channels."""
    outside = 0
    largest = np.empty(_BLOCK, np.float32)
    for start in range(share[0], share[1], _BLOCK):
        stop = min(start + _BLOCK, share[1])
        wanted, known, found = label[0, start:stop], truth[0, start:stop], margin[0, start:stop]
        for i in range(found.size):
            outside += (wanted[i] < 0) | (wanted[i] >= len(logits))
            known[i] = wanted[i]
            largest[i] = -np.inf
        for channel in range(len(logits)):
            values = logits[channel, start:stop]
            for i in range(found.size):
                value, known_yet = values[i], largest[i]
                largest[i] = value if value > known_yet else known_yet
        for channel in range(len(logits)):
            values, out = logits[channel, start:stop], exponents[channel, start:stop]
            for i in range(found.size):
                below, before = largest[i] - values[i], found[i]
                found[i] = below if np.int32(known[i]) == np.int32(channel) else before
                out[i] = below * _PER_BIT
    return outside == 0


@compiled
def _to_probabilities(
    share: tuple[int, int], others: Array, truth: Array, error: Array, total: Array
) -> None:
    """Exponentials to probabilities, 0 for the true class, and for all where none is true."""
    for start in range(share[0], share[1], _BLOCK):
        stop = min(start + _BLOCK, share[1])
        known, errors, totals = truth[0, start:stop], error[0, start:stop], total[0, start:stop]
        for i in range(totals.size):
            totals[i] = ZERO
            errors[i] = ZERO
        for channel in range(len(others)):
            values = others[channel, start:stop]
            for i in range(totals.size):
                totals[i] += values[i]
        for channel in range(len(others)):
            values = others[channel, start:stop]
            for i in range(totals.size):
                is_truth = np.int32(known[i]) == np.int32(channel)
                ignored = np.int32(known[i]) == np.int32(len(others))
                value = values[i] / totals[i]
                value = ZERO if is_truth | ignored else value
                values[i] = value
                errors[i] += value


@compiled
def _slopes(
    share: tuple[int, int],
    others: Array,
    truth: Array,
    error: Array,
    p_t: Array,
    slope: Array,
    grad: Array,
    out: Array,
) -> None:
    """The slopes of the logits; the others' gradient is a map or a number for each class."""
    numbers = grad.shape[1] < others.shape[1]
    inner, at_truth = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    for start in range(share[0], share[1], _BLOCK):
        stop = min(start + _BLOCK, share[1])
        known, errors, ps = truth[0, start:stop], error[0, start:stop], p_t[0, start:stop]
        own = slope[0, start:stop]
        for i in range(own.size):
            inner[i] = ZERO
        for channel in range(len(others)):
            values = others[channel, start:stop]
            if numbers:
                number = grad[channel, 0]
                for i in range(own.size):
                    inner[i] += values[i] * number
            else:
                weights = grad[channel, start:stop]
                for i in range(own.size):
                    inner[i] += values[i] * weights[i]
        for i in range(own.size):
            at_truth[i] = -(errors[i] * own[i] + ps[i] * inner[i])
            inner[i] -= own[i]
        for channel in range(len(others)):
            values, found = others[channel, start:stop], out[channel, start:stop]
            if numbers:
                number = grad[channel, 0]
                for i in range(own.size):
                    value, special = (number - inner[i]) * values[i], at_truth[i]
                    found[i] = special if np.int32(known[i]) == np.int32(channel) else value
            else:
                weights = grad[channel, start:stop]
                for i in range(own.size):
                    value, special = (weights[i] - inner[i]) * values[i], at_truth[i]
                    found[i] = special if np.int32(known[i]) == np.int32(channel) else value
