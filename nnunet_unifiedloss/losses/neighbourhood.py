"""Sums over the neighbourhood of each voxel, 0 outside of the image, with cheap gradients.

The windows are symmetric, so that the gradient of a sum over neighbours is the sum over neighbours
of the gradient: nothing has to be kept for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SPATIAL = 3  # first spatial axis of maps (B, G, K, *S)


def add_shifted(total: Tensor, values: Tensor, axis: int, shift: int, weight: float) -> None:
    """Total += weight · values of the voxel ``shift`` further along the axis, on either side."""
    length = values.shape[axis] - shift
    if length > 0:
        low, high = (total.narrow(axis, start, length) for start in (0, shift))
        low.add_(values.narrow(axis, shift, length), alpha=weight)
        high.add_(values.narrow(axis, 0, length), alpha=weight)


def mean_of_cross(values: Tensor) -> Tensor:
    """Mean of each voxel and its face neighbours."""
    total = values.clone()
    for axis in range(SPATIAL, values.ndim):
        add_shifted(total, values, axis, 1, 1.0)
    return total.mul_(1 / (2 * (values.ndim - SPATIAL) + 1))


def window_sum(values: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Σ weights[|shift|] · values along every axis in turn; weights from the centre outwards."""
    for axis in range(SPATIAL, values.ndim):
        total = values * weights[0]
        for shift, weight in enumerate(weights[1:], start=1):
            add_shifted(total, values, axis, shift, weight)
        values = total
    return values


class ErosionSum(torch.autograd.Function):
    """Σ_k k^α e_k with e_k = r_k / max r_k, r_k = max(mean_of_cross(e_{k−1}) − ½, 0).

    The maximum is that of each (B, G, K); where nothing is left, e_k = 0.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        values: Tensor,
        alpha: float,
        erosions: int,
        counting: Tensor | None,
    ) -> Tensor:
        left, total, kept = values, torch.zeros_like(values), []
        for k in range(1, erosions + 1):
            left = mean_of_cross(left).sub_(0.5).clamp_min_(0)
            left = left if counting is None else left.mul_(counting)
            strongest = _maximum(left)
            # looking is free on the CPU, and most errors are gone after a few erosions
            on_cpu = left.device.type == "cpu" and not torch.compiler.is_compiling()
            if on_cpu and not strongest.any():
                break
            something = strongest > torch.finfo(left.dtype).tiny ** 0.5
            strongest = torch.where(something, strongest, 1)
            left.div_(strongest)  # the largest voxels are exactly 1 now
            total.add_(left, alpha=float(k**alpha))
            kept += [left, strongest]
        ctx.alpha = alpha
        ctx.save_for_backward(*kept)
        return total

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, None, None, None]:
        kept = ctx.saved_tensors
        slope = torch.zeros_like(grad)
        for k in range(len(kept) // 2, 0, -1):
            left, strongest = kept[2 * k - 2 : 2 * k]
            slope.add_(grad, alpha=float(k**ctx.alpha))
            # of r/max r: the largest voxels, where it is 1, share what the others lose
            largest = left.floor()
            shared = (slope * left).flatten(SPATIAL).sum(SPATIAL)
            shared /= largest.flatten(SPATIAL).sum(SPATIAL).clamp_min_(1)
            slope.addcmul_(largest, shared.view(strongest.shape), value=-1)
            slope = mean_of_cross(slope.div_(strongest).mul_(left.sign()))
        return slope, None, None, None


def _maximum(values: Tensor) -> Tensor:
    return values.amax(tuple(range(SPATIAL, values.ndim)), keepdim=True)
