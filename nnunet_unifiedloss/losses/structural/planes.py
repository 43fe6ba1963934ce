"""Local structure on the CPU, image by image and plane by plane.

This computes what `maps` does. There every step passes over whole maps, a hundred times in all;
here the planes that a window reaches stay in the processor's cache from the first step to the last.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nnunet_unifiedloss.losses.compiled import Array, Result, in_threads, shares
from nnunet_unifiedloss.losses.structural import loops
from nnunet_unifiedloss.losses.structural.maps import Probabilities, Window, first_class


def differences(
    probabilities: Probabilities, window: Window, c: float
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """As :func:`maps.differences`; keeps nothing: memory takes longer than computing it again."""
    batch, groups, classes, *space = probabilities.others.shape
    difference = probabilities.others.new_empty(batch, groups, max(classes, 2), *space)
    bits = _run(loops.differences, probabilities, window, c, difference)
    largest = np.array(bits, np.int32).view(np.float32).reshape(batch, groups, -1)
    return difference, torch.from_numpy(largest).amax((0, 2)), ()


def select(difference: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`maps.select`."""
    batch, groups, _, *space = difference.shape
    total, number = difference.new_zeros(batch, groups, *space), difference.new_empty(batch, groups)
    sign = torch.empty_like(difference, dtype=torch.int8)
    sizes, totals, signs = difference.flatten(3), total.flatten(2), sign.flatten(3)

    def of_image(image: tuple[int, ...]) -> None:
        arrays = (tensor[image].numpy() for tensor in (sizes, totals, signs))
        number[image] = loops.select(np.float32(threshold[image[1]]), *arrays)

    in_threads(of_image, np.ndindex(batch, groups))
    return total, number, sign


def slopes(
    grad: Tensor,
    sign: Tensor,
    probabilities: Probabilities,
    window: Window,
    c: float,
    _kept: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor]:
    """As :func:`maps.slopes`."""
    slope = grad.new_empty(probabilities.others.shape)
    of_truth = grad.new_zeros(grad.shape)
    _run(loops.slopes, probabilities, window, c, grad, sign, slope, of_truth)
    return slope, of_truth


def _run(
    loop: Callable[..., Result],
    probabilities: Probabilities,
    window: Window,
    c: float,
    *tensors: Tensor,
) -> list[Result]:
    """Run a loop on every image, its planes shared out among threads."""
    batch, groups, _, *space = probabilities.others.shape
    depth = space[0] if len(space) == 3 else 1

    def in_planes(tensor: Tensor) -> Array:
        tensor = tensor.detach().contiguous()
        planes: Array = tensor.view(*tensor.shape[: -len(space)], depth, -1).numpy()
        return planes

    within = np.array(window.weights, np.float32)
    through = within if len(space) == 3 else np.ones(2, np.float32)  # there is nothing beyond
    reach = loops.WindowInPlanes(within, through, space[-1])
    known, arrays = [in_planes(t) for t in probabilities], [in_planes(t) for t in tensors]
    norm, first = in_planes(window.norm)[:, 0, 0], first_class(probabilities.others)

    def of_part(job: tuple[int, int, tuple[int, int]]) -> Result:
        b, g, part = job
        others, p_t, truth = (array[b, g] for array in known)
        image = loops.Image(others, p_t, truth, norm[b % len(norm)], first)
        return loop(image, reach, np.float32(c), part, *(array[b, g] for array in arrays))

    return in_threads(of_part, itertools.product(range(batch), range(groups), shares(depth)))
