"""The loops of `planes`, which go through an image plane by plane."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from nnunet_unifiedloss.losses.compiled import ONE, ZERO, Array, compiled
from nnunet_unifiedloss.losses.structural.maps import least_variance
from nnunet_unifiedloss.losses.structural.window_loops import (
    WindowInPlanes,
    empty_plane,
    sum_in_window,
)

_QUARTER, _HALF, _TWO = np.float32(0.25), np.float32(0.5), np.float32(2)
_LEAST_VARIANCE = np.float32(least_variance(torch.float32))
_LEAST_DEVIATION = np.float32(math.sqrt(_LEAST_VARIANCE))


class Image(NamedTuple):
    """What is known of an image: (classes, planes, voxels) of others, else (planes, voxels)."""

    others: Array
    p_t: Array
    truth: Array
    norm: Array
    first_class: int  # 1 of two classes, whose maps tell all of class 0, else 0


@compiled
def differences(image: Image, window: WindowInPlanes, c: np.float32, difference: Array) -> np.int32:
    """Differences in an image, see :func:`maps.differences`, and the bits of the largest one.

    As whole numbers the bits of positive floats are in the same order, with NaN at the end.
    """
    classes, planes, voxels = image.others.shape
    margin = len(window.through) - 1
    ring = np.empty((3, 2 * margin + 1, voxels), np.float32)  # the planes that a window reaches
    values, squares, reference = ring[0], ring[1], ring[2]  # known to be contiguous like this
    mean, deviation, other_deviation = empty_plane(voxels), empty_plane(voxels), empty_plane(voxels)
    largest = np.int32(0)
    for k in range(classes):
        ring[:] = 0
        for plane in range(planes + margin):
            slot = plane % len(values)
            if plane < planes:
                _centre(image, k, plane, values[slot], squares[slot])
                _centre_truth(image, k, plane, reference[slot])
            else:
                ring[:, slot] = 0
            middle = plane - margin
            if middle < 0:
                continue
            norm, found, here = image.norm[middle], difference[k, middle], middle % len(values)
            _statistics(values, squares, middle, window, norm, mean, deviation)
            _standardise(values[here], mean, deviation, c, found)
            sum_in_window(reference, middle, window, mean)
            _subtract_reference(reference[here], mean, norm, c, other_deviation, found)
            largest = max(largest, _largest_bits(found))
            if image.first_class:
                _first_of_two(found, deviation, other_deviation, c, norm, difference[1, middle])
                largest = max(largest, _largest_bits(difference[1, middle]))
    return largest


@compiled
def slopes(
    image: Image,
    window: WindowInPlanes,
    c: np.float32,
    grad: Array,
    sign: Array,
    slope: Array,
    of_truth: Array,
) -> None:
    """Slopes in an image, see :func:`maps.slopes`."""
    classes, planes, voxels = image.others.shape
    margin = len(window.through) - 1
    ring = np.empty((5, 2 * margin + 1, voxels), np.float32)
    values, squares, own, by_mean, by_variance = ring[0], ring[1], ring[2], ring[3], ring[4]
    mean, deviation, total = empty_plane(voxels), empty_plane(voxels), empty_plane(voxels)
    for k in range(classes):
        ring[:] = 0
        for plane in range(planes + 2 * margin):
            slot = plane % len(values)
            if plane < planes:
                _centre(image, k, plane, values[slot], squares[slot])
            else:
                ring[:2, slot] = 0
            middle = plane - margin  # the statistics are known up to here
            slot = middle % len(values)
            if 0 <= middle < planes:
                norm, by = image.norm[middle], (by_mean[slot], by_variance[slot])
                _statistics(values, squares, middle, window, norm, mean, deviation)
                _of_signs(image, sign, k, middle, grad[middle], own[slot], total)
                _by_statistics(values[slot], mean, deviation, norm, c, own[slot], total, *by)
            else:
                ring[2:, slot] = 0
            last = middle - margin  # and so are the slopes of the statistics around this one
            if last >= 0:
                found, here = slope[k, last], last % len(values)
                sum_in_window(by_mean, last, window, found)
                sum_in_window(by_variance, last, window, total)
                _join(image, k, last, own[here], total, values[here], found, of_truth[last])


@compiled
def select(threshold: np.float32, difference: Array, total: Array, sign: Array) -> int:
    """Add up the absolute differences above a threshold; their number, and their signs."""
    number = 0
    for k in range(len(difference)):
        of_class, sign_of_class = difference[k], sign[k]
        for i in range(total.size):
            size = abs(of_class[i])
            selected = size > threshold
            total[i] += size if selected else ZERO
            direction = np.int8(1) if of_class[i] > 0 else np.int8(-1)
            sign_of_class[i] = direction if selected else np.int8(0)
            number += selected
    return number


@compiled
def _centre(image: Image, k: int, plane: int, out: Array, squares: Array) -> None:
    """The probability of a class less ½, 0 where a voxel does not count, and its square."""
    others, p_t, norm = image.others[k, plane], image.p_t[plane], image.norm[plane]
    truth, label = image.truth[plane], np.int32(k + image.first_class)
    for i in range(out.size):
        own = p_t[i]
        value = others[i] + (own if truth[i] == label else ZERO) - _HALF
        value = value if norm[i] > 0 else ZERO
        out[i] = value
        squares[i] = value * value


@compiled
def _centre_truth(image: Image, k: int, plane: int, out: Array) -> None:
    truth, norm, label = image.truth[plane], image.norm[plane], np.int32(k + image.first_class)
    for i in range(out.size):
        value = _HALF if truth[i] == label else -_HALF
        out[i] = value if norm[i] > 0 else ZERO


@compiled
def _statistics(
    values: Array,
    squares: Array,
    plane: int,
    window: WindowInPlanes,
    norm: Array,
    mean: Array,
    deviation: Array,
) -> None:
    """Mean and standard deviation around each voxel of a plane."""
    sum_in_window(values, plane, window, mean)
    sum_in_window(squares, plane, window, deviation)
    for i in range(mean.size):
        average = mean[i] * norm[i]
        variance = deviation[i] * norm[i] - average * average
        mean[i] = average
        deviation[i] = math.sqrt(variance if variance > _LEAST_VARIANCE else ZERO)


@compiled
def _standardise(values: Array, mean: Array, deviation: Array, c: np.float32, out: Array) -> None:
    for i in range(out.size):
        out[i] = (values[i] - mean[i] + c) / (deviation[i] + c)


@compiled
def _subtract_reference(
    values: Array, total: Array, norm: Array, c: np.float32, deviation: Array, out: Array
) -> None:
    for i in range(out.size):
        mean = total[i] * norm[i]
        variance = _QUARTER - mean * mean
        spread = np.float32(math.sqrt(variance if variance > _LEAST_VARIANCE else ZERO))
        deviation[i] = spread
        difference = out[i] - (values[i] - mean + c) / (spread + c)
        out[i] = difference if norm[i] > 0 else ZERO


@compiled
def _largest_bits(values: Array) -> np.int32:
    bits, largest = values.view(np.int32), np.int32(0)
    for i in range(bits.size):
        largest = max(largest, bits[i] & np.int32(0x7FFFFFFF))  # without the sign
    return largest


@compiled
def _first_of_two(
    second: Array,
    deviation: Array,
    reference_deviation: Array,
    c: np.float32,
    norm: Array,
    out: Array,
) -> None:
    """The difference of the first of two classes."""
    for i in range(out.size):
        quotients = ONE / (deviation[i] + c) - ONE / (reference_deviation[i] + c)
        out[i] = _TWO * c * quotients - second[i] if norm[i] > 0 else ZERO


@compiled
def _of_signs(
    image: Image, sign: Array, k: int, plane: int, grad: Array, slope: Array, total: Array
) -> None:
    """Slopes of the standardised values: by way of the values, and by way of c."""
    if image.first_class:
        second, first = sign[0, plane], sign[1, plane]
        for i in range(slope.size):
            slope[i] = np.float32(second[i] - first[i]) * grad[i]
            total[i] = np.float32(second[i] + first[i]) * grad[i]
    else:
        signs = sign[k, plane]
        for i in range(slope.size):
            slope[i] = np.float32(signs[i]) * grad[i]
            total[i] = slope[i]


@compiled
def _by_statistics(
    values: Array,
    mean: Array,
    deviation: Array,
    norm: Array,
    c: np.float32,
    own: Array,
    total: Array,
    by_mean: Array,
    by_variance: Array,
) -> None:
    """What (values - mean + c) / (deviation + c) hands on to values, mean and variance."""
    for i in range(values.size):
        inverse = ONE / (deviation[i] + c)
        spread = deviation[i] if deviation[i] > _LEAST_DEVIATION else _LEAST_DEVIATION
        variance = ((values[i] - mean[i]) * own[i] + c * total[i]) * inverse * inverse / spread
        own[i] *= inverse
        by_mean[i] = (variance * mean[i] - own[i]) * norm[i]
        by_variance[i] = variance * norm[i]


@compiled
def _join(
    image: Image,
    k: int,
    plane: int,
    own: Array,
    by_variance: Array,
    values: Array,
    slope: Array,
    of_truth: Array,
) -> None:
    """Add to the slope by way of the mean what comes directly and by way of the variance."""
    truth, norm, label = image.truth[plane], image.norm[plane], np.int32(k + image.first_class)
    for i in range(slope.size):
        value, before = own[i] + slope[i] - by_variance[i] * values[i], of_truth[i]
        value = value if norm[i] > 0 else ZERO
        slope[i] = value
        of_truth[i] = value if truth[i] == label else before
