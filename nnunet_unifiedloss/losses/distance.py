"""Exact Euclidean distance transforms of whole batches, on the device that the masks are on."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Mask = npt.NDArray[np.bool_]
Map = npt.NDArray[Any]

_CACHED = 2**17  # voxels that a processor's cache holds some times over
_LARGEST_BLOCK = 2**25  # numbers that the transform on a device holds at a time


@torch.no_grad()
def squared_distance(
    of: Tensor, to: Tensor, spacing: tuple[float, ...] | None, dtype: torch.dtype
) -> Tensor:
    """Squared distance of some voxels to the nearest of others.

    It is the minimum over the lines of each axis in turn: on the CPU image by image, with an end as
    soon as nothing can change any more; on other devices for all images at once, without a round
    trip to the host.

    Args:
        of: Voxels whose distance is asked for, booleans (B, G, K, *S).
        to: Voxels to measure to, booleans of the same shape.
        spacing: Size of a voxel along each spatial axis, or None for 1.
        dtype: Of the distances.

    Returns:
        (B, G, K, *S); 0 elsewhere, and where there is nothing to measure to.

    Raises:
        ValueError: ``spacing`` does not have one number for each spatial axis.
    """
    axes = of.ndim - 3
    size = (1.0,) * axes if spacing is None else spacing
    if len(size) != axes:
        raise ValueError(
            f"spacing: has {len(size)} numbers for images of {axes} axes, got {spacing}"
        )
    if of.device.type == "cpu":
        result = torch.zeros(of.shape, dtype=dtype)
        images = (values.flatten(0, 2).numpy() for values in (of, to, result))
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            list(threads.map(partial(_of_image, size), *images))
        return result
    return _separable(of, to, size, dtype)


def _of_image(size: tuple[float, ...], of: Mask, to: Mask, result: Map) -> None:
    """Squared distance in one image."""
    if of.any() and to.any():
        box = _box(of, margin=1) if np.logical_or(of, to).all() else ...
        np.copyto(result[box], _to_nearest(to[box], size, result.dtype), where=of[box])


def _box(mask: Mask, *, margin: int = 0) -> tuple[slice, ...]:
    """The box around a mask.

    With a margin of one voxel, what lies in it decides about distances to the complement: on the
    way to a voxel further away the line from the mask leaves it through the margin, which is
    complement already.
    """
    box = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        found = np.flatnonzero(mask.any(axis=others))
        box.append(slice(max(int(found[0]) - margin, 0), int(found[-1]) + 1 + margin))
    return tuple(box)


def _to_nearest(to: Mask, size: tuple[float, ...], dtype: np.dtype[Any]) -> Map:
    """Squared distance of every voxel to a mask, along the first axis, then by some planes."""
    _, *box = _box(to)
    distance = _along_columns(to[(slice(None), *box)], size[0], dtype)
    np.square(distance, out=distance)
    result = np.empty(to.shape, dtype)
    planes = max(1, _CACHED // math.prod(to.shape[1:]))
    for first in range(0, len(to), planes):
        part = slice(first, first + planes)
        lowest = distance[part]
        for axis, found in enumerate(box, start=1):
            lowest = _lowest(lowest.swapaxes(0, axis), found.start, to.shape[axis], size[axis])
            lowest = lowest.swapaxes(0, axis)
        result[part] = lowest
    return result


def _along_columns(to: Mask, step: float, dtype: np.dtype[Any]) -> Map:
    """Distance to the nearest voxel of a mask along the first axis, infinite without one."""
    distance: Map = np.where(to, dtype.type(0), dtype.type(np.inf))
    for lines in (distance, distance[::-1]):
        for line, before in zip(lines[1:], lines[:-1], strict=True):
            np.minimum(line, before + dtype.type(step), out=line)
    return distance


def _lowest(squared: Map, start: int, length: int, step: float) -> Map:
    """The least of squared + (step · shift)² over all shifts along the first axis.

    Rows ``start`` and following of ``length`` rows are given, those beside them are infinite.
    Whole rows are shifted at a time, and no further than the largest distance that was found: a
    longer way does not improve any, and ways to where there was none are at least as long as the
    shift.
    """
    squared = np.ascontiguousarray(squared)
    result = np.full((length, *squared.shape[1:]), np.inf, squared.dtype)
    end = start + len(squared)
    result[start:end] = squared
    candidate = np.empty_like(squared)
    for shift in range(1, max(end, length - start)):
        longer = squared.dtype.type((step * shift) ** 2)
        np.add(squared, longer, out=candidate)
        down = (max(shift - start, 0), len(squared), -shift)
        up = (0, min(len(squared), length - start - shift), shift)
        for first, last, way in (down, up):  # the rows that stay within the length
            if first < last:
                goal = result[start + first + way : start + last + way]
                np.minimum(goal, candidate[first:last], out=goal)
        if shift % 4 == 0 and _largest(result) < longer:
            break
    return result


def _largest(values: Map) -> float:
    """The largest finite value."""
    largest = values.max()
    if np.isinf(largest):
        largest = values.max(where=np.isfinite(values), initial=0)
    return float(largest)


def _separable(of: Tensor, to: Tensor, size: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """Squared distance by a minimum over all lines of one axis after the other."""
    squared = torch.zeros(to.shape, dtype=dtype, device=to.device).masked_fill_(~to, torch.inf)
    for axis, step in enumerate(size, start=3):
        length = squared.shape[axis]
        position = torch.arange(length, dtype=dtype, device=to.device).mul_(step)
        along = (position[:, None] - position).square_()
        lines = squared.movedim(axis, -1)
        blocks = torch.split(lines.reshape(-1, length), max(1, _LARGEST_BLOCK // length**2))
        minima = torch.cat([(block[:, None] + along).amin(-1) for block in blocks])
        squared = minima.view(lines.shape).movedim(-1, axis)
    return squared.masked_fill(~of | squared.isinf(), 0).contiguous()
