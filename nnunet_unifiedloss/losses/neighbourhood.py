"""Sums over the neighbourhood of each voxel, 0 outside of the image, with cheap gradients.

The windows are symmetric, so that the gradient of a sum over neighbours is the sum over neighbours
of the gradient: nothing has to be kept for the backward pass.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_unifiedloss.losses.autograd import as_output, differentiable_once, of_maps
from nnunet_unifiedloss.losses.devices import at_hand

SPATIAL = 3  # first spatial axis of maps (B, G, K, *S)


def sum_of_cross(values: Tensor, *, less: float = 0) -> Tensor:
    """Sum of each voxel and its face neighbours, less a constant."""
    total = values - less
    for axis in range(SPATIAL, values.ndim):
        length = values.shape[axis] - 1
        if torch.compiler.is_compiling():  # to one pass, unlike sums of parts in place
            padded = functional.pad(values, [0, 0] * (values.ndim - 1 - axis) + [1, 1])
            total += padded.narrow(axis, 0, length + 1) + padded.narrow(axis, 2, length + 1)
            continue
        total.narrow(axis, 0, length).add_(values.narrow(axis, 1, length))
        total.narrow(axis, 1, length).add_(values.narrow(axis, 0, length))
    return total


def parts(values: Tensor) -> list[tuple[slice, ...]]:
    """What of (B, G, K, *S) to work on at a time: on the CPU one map, which its cache holds."""
    if at_hand(values):
        return [
            tuple(slice(i, i + 1) for i in item)
            for item in itertools.product(*map(range, values.shape[:SPATIAL]))
        ]
    return [(slice(None),) * SPATIAL]


class ErosionSums(torch.autograd.Function):
    """Σ_k k^α e_k over the voxels of each (B, G, K), from errors (B, G, K, *S).

    e_0 is their square, e_k = r_k / max r_k with r_k = max(mean over the cross of e_{k−1} − ½, 0);
    the maximum is that of each (B, G, K), and where nothing is left, e_k = 0.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        errors: Tensor,
        alpha: float,
        erosions: int,
        counting: Tensor | None,
    ) -> Tensor:
        sums = errors.new_zeros(errors.shape[:SPATIAL])
        ctx.alpha, ctx.erosions, kept = alpha, [], [errors]
        for part in parts(errors):
            mask = None if counting is None else counting[part[0]]
            eroded = _erode(errors[part].square(), erosions, mask)
            for k, (left, _) in enumerate(eroded, 1):
                sums[part].add_(left.flatten(SPATIAL).sum(SPATIAL), alpha=float(k**alpha))
            ctx.erosions.append(len(eroded))
            kept += [tensor for pair in eroded for tensor in pair]
        ctx.save_for_backward(*kept)
        return as_output(sums)

    @staticmethod
    @differentiable_once
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, None, None, None]:
        errors, *kept = ctx.saved_tensors
        pairs = zip(kept[::2], kept[1::2], strict=True)
        slopes = torch.zeros_like(errors)
        grad = of_maps(grad, errors)
        for part, erosions in zip(parts(errors), ctx.erosions, strict=True):
            eroded = list(itertools.islice(pairs, erosions))
            if eroded:
                slope = _slope(grad[part], eroded, ctx.alpha)
                slopes[part] = slope.mul_(errors[part]).mul_(2)
        return slopes, None, None, None


def _erode(values: Tensor, erosions: int, counting: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """e_k and the maximum it was divided by, as long as something is left."""
    left, eroded = values, []
    half = values.ndim - SPATIAL + 0.5  # of the number of voxels of a cross
    for _ in range(erosions):
        left = sum_of_cross(left, less=half).clamp_min_(0)
        left = left if counting is None else left.mul_(counting)
        strongest = left.amax(tuple(range(SPATIAL, left.ndim)), keepdim=True)
        if at_hand(left) and not strongest.any():  # most errors are gone after a few erosions
            break
        something = strongest > torch.finfo(left.dtype).tiny ** 0.5
        strongest = torch.where(something, strongest, 1)
        left.div_(strongest)
        eroded.append((left, strongest))
    return eroded


def _slope(grad: Tensor, eroded: list[tuple[Tensor, Tensor]], alpha: float) -> Tensor:
    """The slope of Σ_k k^α e_k, given that of the sum."""
    slope = torch.zeros_like(eroded[0][0])
    for k in range(len(eroded), 0, -1):
        left, strongest = eroded[k - 1]
        slope.add_(grad, alpha=float(k**alpha))
        # of r/max r: the largest voxels, where it is 1, share what the others lose; not every
        # compiler's quotient of equal numbers is 1
        largest = left.add(4 * torch.finfo(left.dtype).eps).floor_()
        shared = (slope * left).flatten(SPATIAL).sum(SPATIAL)
        shared /= largest.flatten(SPATIAL).sum(SPATIAL).clamp_min_(1)
        slope.addcmul_(largest, shared.view(strongest.shape), value=-1)
        slope = sum_of_cross(slope.div_(strongest).mul_(left.sign()))
    return slope
