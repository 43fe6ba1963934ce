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

_CACHED = 2**19  # bytes; a few arrays of this size fit the processor's cache
_LARGEST_BLOCK = 2**24  # numbers that the transform on a device holds at a time


@torch.no_grad()
def squared_distance(
    of: Tensor, to: Tensor, size: tuple[float, ...], dtype: torch.dtype, *, both: bool = False
) -> Tensor:
    """Squared distance of some voxels to the nearest of others.

    Args:
        of: Voxels whose distance is asked for, booleans (…, *S).
        to: Voxels to measure to, booleans of the same shape.
        size: Size of a voxel along each spatial axis.
        dtype: Of the distances.
        both: Also return the distance from ``to`` to ``of``, for the voxels of ``to``.

    Returns:
        The shape of the masks; 0 for all other voxels, and where there is nothing to measure to.
    """
    if not _numpy_can_read(of):
        distance = _with_torch(of, to, size, dtype)
        return distance + _with_torch(to, of, size, dtype) if both else distance
    result = torch.zeros(of.shape, dtype=dtype)
    images = (values.flatten(0, -1 - len(size)).numpy() for values in (of, to, result))
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(partial(_of_image, size, both), *images))
    return result


def _numpy_can_read(tensor: Tensor) -> bool:
    """True where NumPy can read a tensor: on the CPU, neither compiled nor in torch.func."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and not wrapped


def _of_image(size: tuple[float, ...], both: bool, of: Mask, to: Mask, result: Map) -> None:
    """Squared distance in one image."""
    if of.any() and to.any():
        all_count = np.logical_or(of, to).all()
        for some, others in ((of, to), (to, of)) if both else ((of, to),):
            box = _box(some, margin=1) if all_count else ...
            np.copyto(result[box], _to_nearest(others[box], size, result.dtype), where=some[box])


def _box(mask: Mask, *, margin: int = 0) -> tuple[slice, ...]:
    """The box around a mask.

    A margin of one voxel is enough to measure distances from the mask to its complement: the line
    to any voxel further away leaves the mask within the margin.
    """
    box = []
    for axis in range(mask.ndim):
        found = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(max(int(found[0]) - margin, 0), int(found[-1]) + 1 + margin))
    return tuple(box)


def _to_nearest(to: Mask, size: tuple[float, ...], dtype: np.dtype[Any]) -> Map:
    """Squared distance of every voxel to a mask, along the first axis, then by some planes."""
    squares = [(length - 1) ** 2 for length in to.shape]
    infinity: float = np.iinfo(np.uint16).max - max(squares)  # a step may still be added to it
    if set(size) == {1.0} and sum(squares) < infinity:
        dtype = np.dtype(np.uint16)  # half the memory to read and write
    else:
        infinity = math.inf
    _, *box = _box(to)
    squared = _along_columns(to[(slice(None), *box)], size[0], dtype, infinity)
    result = np.empty(to.shape, dtype)
    planes = max(1, _CACHED // (math.prod(to.shape[1:]) * dtype.itemsize))
    for first in range(0, len(to), planes):
        lowest = squared[first : first + planes]
        for axis, found in enumerate(box, start=1):
            lines = lowest.swapaxes(0, axis)
            lines = _lowest(lines, found.start, to.shape[axis], size[axis], infinity)
            lowest = lines.swapaxes(0, axis)
        result[first : first + planes] = lowest
    return result


def _along_columns(to: Mask, step: float, dtype: np.dtype[Any], infinity: float) -> Map:
    """Squared distance to the nearest voxel of a mask along the first axis."""
    distance: Map = np.where(to, dtype.type(0), dtype.type(infinity))
    for lines in (distance, distance[::-1]):
        for line, before in zip(lines[1:], lines[:-1], strict=True):
            np.minimum(line, before + dtype.type(step), out=line)
    return np.square(distance, out=distance, where=distance < infinity)


def _lowest(squared: Map, start: int, length: int, step: float, infinity: float) -> Map:
    """The least of squared + (step · shift)² over all shifts along the first axis.

    Of ``length`` rows, those from ``start`` on are given; the others are infinite. Rows are shifted
    no further than the largest distance found so far, because a larger shift improves nothing.
    """
    squared = np.ascontiguousarray(squared)
    result = np.full((length, *squared.shape[1:]), infinity, squared.dtype)
    end = start + len(squared)
    result[start:end] = squared
    candidate = np.empty_like(squared)
    for shift in range(1, max(end, length - start)):
        longer = squared.dtype.type((step * shift) ** 2)
        np.add(squared, longer, out=candidate)
        down = (max(shift - start, 0), len(squared), -shift)
        up = (0, min(len(squared), length - start - shift), shift)
        for first, last, by in (down, up):  # the rows that stay within the length
            if first < last:
                target = result[start + first + by : start + last + by]
                np.minimum(target, candidate[first:last], out=target)
        if shift % 4 == 0 and _largest(result, infinity) < longer:
            break
    return result


def _largest(values: Map, infinity: float) -> float:
    """The largest finite value; the plain maximum is several times faster than a masked one."""
    largest = values.max()
    return float(largest if largest < infinity else values.max(where=values < infinity, initial=0))


def _with_torch(of: Tensor, to: Tensor, size: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """Squared distance in all images at once, by a minimum over the lines of each axis in turn."""
    first = to.ndim - len(size)
    squared = _along_axis(to, first, size[0], dtype)
    for axis, step in enumerate(size[1:], start=first + 1):
        length = squared.shape[axis]
        position = torch.arange(length, dtype=dtype, device=to.device) * step
        along = (position[:, None] - position).square()
        lines = squared.movedim(axis, -1)
        blocks = torch.split(lines.reshape(-1, length), max(1, _LARGEST_BLOCK // length**2))
        minima = torch.cat([(block[:, None] + along).amin(-1) for block in blocks])
        squared = minima.view(lines.shape).movedim(-1, axis)
    return squared.masked_fill(~of | squared.isinf(), 0).contiguous()


def _along_axis(to: Tensor, axis: int, step: float, dtype: torch.dtype) -> Tensor:
    """Squared distance to the nearest voxel of a mask along an axis."""
    position = torch.arange(to.shape[axis], dtype=dtype, device=to.device) * step
    position = position.view(-1, *(1 for _ in to.shape[axis + 1 :]))
    before = torch.where(to, position, -torch.inf).cummax(axis).values
    after = torch.where(to, position, torch.inf).flip(axis).cummin(axis).values.flip(axis)
    return torch.minimum(position - before, after - position).square()
