"""Local structure on the CPU, image by image and plane by plane.

This computes what `maps` does. There every step passes over whole maps, a hundred times in all;
here the planes that a window reaches stay in the processor's cache from the first step to the last,
as long as it holds some ten of them. A 2-D image is a single plane. Each thread takes an image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from nnunet_unifiedloss.losses.compiled import Array, share_out
from nnunet_unifiedloss.losses.structural import loops
from nnunet_unifiedloss.losses.structural.maps import Probabilities, Window, first_class
from nnunet_unifiedloss.losses.structural.window_loops import WindowInPlanes

Result = TypeVar("Result")


def differences(
    probabilities: Probabilities, window: Window, c: float
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """As :func:`maps.differences`; keeps nothing: memory takes longer than computing it again."""
    batch, groups, classes, *space = probabilities.others.shape
    difference = probabilities.others.new_empty(batch, groups, max(classes, 2), *space)
    bits = _each_image(loops.differences, probabilities, window, c, difference)
    largest = np.array(bits, np.int32).view(np.float32).reshape(batch, groups, -1)
    return difference, torch.from_numpy(largest).amax((0, 2)), ()


def select(difference: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`maps.select`."""
    batch, groups, _, *space = difference.shape
    total, limits = difference.new_zeros(batch, groups, *space), threshold.numpy()
    sign = torch.empty_like(difference, dtype=torch.int8)
    arrays = [t.numpy() for t in (difference.flatten(3), total.flatten(2), sign.flatten(3))]
    number = [
        [loops.select(limit, *(array[b, g] for array in arrays)) for g, limit in enumerate(limits)]
        for b in range(batch)
    ]
    return total, difference.new_tensor(number), sign


def slopes(
    grad: Tensor,
    sign: Tensor,
    probabilities: Probabilities,
    window: Window,
    c: float,
    _kept: tuple[Tensor, ...],
    spare: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """As :func:`maps.slopes`; spare is memory that they may have, of any content."""
    slope = grad.new_empty(probabilities.others.shape) if spare is None else spare
    of_truth = grad.new_zeros(grad.shape)
    _each_image(loops.slopes, probabilities, window, c, grad, sign, slope, of_truth)
    return slope, of_truth


def _each_image(
    loop: Callable[..., Result],
    probabilities: Probabilities,
    window: Window,
    c: float,
    *tensors: Tensor,
) -> list[Result]:
    batch, groups, _, *space = probabilities.others.shape
    weights = np.array(window.weights, np.float32)
    planes, through = (space[0], weights) if len(space) == 3 else (1, np.ones(1, np.float32))
    reach = WindowInPlanes(through, weights, space[-1])

    def in_planes(tensor: Tensor) -> Array:
        shape = tensor.shape[: tensor.ndim - len(space)]
        array: Array = tensor.detach().contiguous().view(*shape, planes, -1).numpy()
        return array

    known, arrays = [in_planes(t) for t in probabilities], [in_planes(t) for t in tensors]
    norm, first = in_planes(window.norm)[:, 0, 0], first_class(probabilities.others)
    margin = len(through) - 1
    if window.all_count and planes > 2 * margin + 1:  # the planes between are all the same
        norm = np.delete(norm, slice(margin + 1, planes - margin), 1)

    def of_image(index: tuple[int, int]) -> Result:
        b, g = index
        others, p_t, truth = (array[b, g] for array in known)
        image = loops.Image(others, p_t, truth, norm[b % len(norm)], first)
        return loop(image, reach, np.float32(c), *(array[b, g] for array in arrays))

    return share_out(of_image, list(np.ndindex(batch, groups)))
