"""Exact Euclidean distance transforms of whole batches, on the device that the masks are on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from torch import Tensor

# ITK's pool of threads does not survive a fork: a forked worker would wait for it for ever
sitk.ProcessObject.SetGlobalDefaultThreader("PLATFORM")

_LARGEST_BLOCK = 2**25  # numbers that the transform on a device holds at a time


@torch.no_grad()
def squared_distance(
    of: Tensor, to: Tensor, spacing: tuple[float, ...] | None, dtype: torch.dtype
) -> Tensor:
    """Squared distance of some voxels to the nearest of others.

    On the CPU SimpleITK computes it, in float32; on other devices, and in float64, it is a minimum
    over the lines of each axis in turn, without a round trip to the host.

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
    if of.device.type == "cpu" and dtype == torch.float32:
        pairs = zip(of.flatten(0, 2).numpy(), to.flatten(0, 2).numpy(), strict=True)
        maps = [torch.from_numpy(_maurer(of_item, to_item, size)) for of_item, to_item in pairs]
        return torch.stack(maps).view(of.shape)
    return _separable(of, to, size, dtype)


def _maurer(
    of: npt.NDArray[np.bool_], to: npt.NDArray[np.bool_], size: tuple[float, ...]
) -> npt.NDArray[np.float32]:
    """Squared distance in one image by SimpleITK."""
    result = np.zeros(of.shape, np.float32)
    if not to.any() or not of.any():
        return result
    box = _neighbourhood(of) if np.logical_or(of, to).all() else ...
    image = sitk.GetImageFromArray(to[box].astype(np.uint8))
    image.SetSpacing(size[::-1])
    distance = sitk.SignedMaurerDistanceMap(
        image, insideIsPositive=False, squaredDistance=True, useImageSpacing=True
    )
    np.copyto(result[box], sitk.GetArrayViewFromImage(distance), where=of[box])
    return result


def _neighbourhood(mask: npt.NDArray[np.bool_]) -> tuple[slice, ...]:
    """The box around a mask with a margin of one voxel.

    What lies in it decides about distances to the complement: on the way to a voxel further away
    the line from the mask leaves it through the margin, which is complement already.
    """
    box = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        found = np.flatnonzero(mask.any(axis=others))
        box.append(slice(max(int(found[0]) - 1, 0), int(found[-1]) + 2))
    return tuple(box)


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
