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
    norm: Array  # without planes in the middle that are the same as the one left there
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
    sums = np.empty((3, voxels), np.float32)
    mean, square, reference_mean = sums[0], sums[1], sums[2]
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
            norm, found, here = _norm(image, middle), difference[k, middle], middle % len(values)
            sum_in_window(values, middle, window, mean)
            sum_in_window(squares, middle, window, square)
            sum_in_window(reference, middle, window, reference_mean)
            _difference(values[here], reference[here], sums, norm, c, found)
            largest = max(largest, _largest_bits(found))
            if image.first_class:
                _first_of_two(found, sums, norm, c, difference[1, middle])
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
    sums = np.empty((2, voxels), np.float32)
    mean, square, no_signs = sums[0], sums[1], np.zeros(voxels, np.int8)
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
                sum_in_window(values, middle, window, mean)
                sum_in_window(squares, middle, window, square)
                signs = sign[k, middle], sign[1, middle] if image.first_class else no_signs
                norm, found = _norm(image, middle), (own[slot], by_mean[slot], by_variance[slot])
                _by_statistics(values[slot], sums, norm, c, grad[middle], *signs, *found)
            else:
                ring[2:, slot] = 0
            last = middle - margin  # and so are the slopes of the statistics around this one
            if last >= 0:
                found, here = slope[k, last], last % len(values)
                sum_in_window(by_mean, last, window, found)
                sum_in_window(by_variance, last, window, square)
                _join(image, k, last, own[here], square, values[here], found, of_truth[last])


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
def _norm(image: Image, plane: int) -> Array:
    """The norm in a plane, be it left out."""
    middle, left_out = len(image.norm) // 2, len(image.p_t) - len(image.norm)
    found: Array = image.norm[plane if plane < middle else max(middle, plane - left_out)]
    return found


@compiled
def _centre(image: Image, k: int, plane: int, out: Array, squares: Array) -> None:
    """The probability of a class less ½, 0 where a voxel does not count, and its square."""
    others, p_t, norm = image.others[k, plane], image.p_t[plane], _norm(image, plane)
    truth, label = image.truth[plane], np.int32(k + image.first_class)
    for i in range(out.size):
        own = p_t[i]
        value = others[i] + (own if np.int32(truth[i]) == label else ZERO) - _HALF
        value = value if norm[i] > 0 else ZERO
        out[i] = value
        squares[i] = value * value


@compiled
def _centre_truth(image: Image, k: int, plane: int, out: Array) -> None:
    truth, norm, label = image.truth[plane], _norm(image, plane), np.int32(k + image.first_class)
    for i in range(out.size):
        value = _HALF if np.int32(truth[i]) == label else -_HALF
        out[i] = value if norm[i] > 0 else ZERO


@compiled
def _deviation(mean: np.float32, square: np.float32) -> np.float32:
    """The standard deviation; a variance that is nothing but rounding is 0."""
    variance = square - mean * mean
    return np.float32(math.sqrt(variance if variance > _LEAST_VARIANCE else ZERO))


@compiled
def _difference(
    values: Array, reference: Array, sums: Array, norm: Array, c: np.float32, out: Array
) -> None:
    """Standardised value less standardised reference."""
    total, squares, reference_total = sums[0], sums[1], sums[2]
    for i in range(out.size):
        mean, reference_mean = total[i] * norm[i], reference_total[i] * norm[i]
        spread = _deviation(mean, squares[i] * norm[i]) + c
        reference_spread = _deviation(reference_mean, _QUARTER) + c
        standardised = (values[i] - mean + c) / spread
        difference = standardised - (reference[i] - reference_mean + c) / reference_spread
        out[i] = difference if norm[i] > 0 else ZERO


@compiled
def _largest_bits(values: Array) -> np.int32:
    bits, largest = values.view(np.int32), np.int32(0)
    for i in range(bits.size):
        largest = max(largest, bits[i] & np.int32(0x7FFFFFFF))  # without the sign
    return largest


@compiled
def _first_of_two(second: Array, sums: Array, norm: Array, c: np.float32, out: Array) -> None:
    """The difference of the first of two classes, given that of the second one."""
    total, squares, reference_total = sums[0], sums[1], sums[2]
    for i in range(out.size):
        spread = _deviation(total[i] * norm[i], squares[i] * norm[i]) + c
        reference_spread = _deviation(reference_total[i] * norm[i], _QUARTER) + c
        quotients = ONE / spread - ONE / reference_spread
        out[i] = _TWO * c * quotients - second[i] if norm[i] > 0 else ZERO


@compiled
def _by_statistics(
    values: Array,
    sums: Array,
    norm: Array,
    c: np.float32,
    grad: Array,
    sign: Array,
    sign_of_first: Array,
    own: Array,
    by_mean: Array,
    by_variance: Array,
) -> None:
    """What (values - mean + c) / (deviation + c) hands on to values, mean and variance.

    Of two classes the first one's values have the other sign, its c has the same.
    """
    total, squares = sums[0], sums[1]
    for i in range(values.size):
        mean = total[i] * norm[i]
        deviation = _deviation(mean, squares[i] * norm[i])
        spread = deviation if deviation > _LEAST_DEVIATION else _LEAST_DEVIATION
        quotient = ONE / ((deviation + c) * spread)
        inverse = quotient * spread
        slope = np.float32(sign[i] - sign_of_first[i]) * grad[i]
        of_c = np.float32(sign[i] + sign_of_first[i]) * grad[i]
        variance = ((values[i] - mean) * slope + c * of_c) * inverse * quotient
        own[i] = slope * inverse
        by_mean[i] = (variance * mean - slope * inverse) * norm[i]
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
    truth, norm, label = image.truth[plane], _norm(image, plane), np.int32(k + image.first_class)
    for i in range(slope.size):
        value, before = own[i] + slope[i] - by_variance[i] * values[i], of_truth[i]
        value = value if norm[i] > 0 else ZERO
        slope[i] = value
        of_truth[i] = value if np.int32(truth[i]) == label else before
