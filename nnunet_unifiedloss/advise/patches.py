"""The patches that nnU-Net trains on, drawn from a label image as its data loader draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["SAMPLES", "oversampled_share", "patch_shape", "patches_with"]

OVERSAMPLED = 0.33  # nnUNetTrainer.oversample_foreground_percent
SAMPLES = 32  # random patches of a case, and as many around foreground

Mask = npt.NDArray[np.bool_]
Corner = npt.NDArray[np.int64]


def oversampled_share(batch: int) -> float:
    """Return the share of a batch that nnU-Net centres on foreground.

    Example:
        >>> [oversampled_share(batch) for batch in (1, 2, 12)]
        [0.0, 0.5, 0.3333333333333333]
    """
    return (batch - round(batch * (1 - OVERSAMPLED))) / batch


def patch_shape(
    patch: Sequence[int], target: Sequence[float], spacing: Sequence[float]
) -> tuple[int, ...]:
    """Return the size of a patch in voxels of an image.

    Args:
        patch: The patch size of a configuration, with two or three values.
        target: Spacing of the configuration, of as many values.
        spacing: Spacing of the image, three values. A patch of two axes is a slice of it.

    Example:
        >>> patch_shape([64, 32], [0.5, 0.5], [3.0, 1.0, 0.5])
        (1, 32, 32)
    """
    missing = len(spacing) - len(patch)
    sizes = [
        max(1, round(size * wanted / step))
        for size, wanted, step in zip(
            patch, target[len(target) - len(patch) :], spacing[missing:], strict=True
        )
    ]
    return (1,) * missing + tuple(sizes)


def patches_with(
    masks: Mapping[str, Mask],
    annotated: Mask | None,
    patch: Sequence[int],
    generator: np.random.Generator,
) -> dict[str, tuple[float, float]]:
    """Return the shares of patches that contain each structure.

    Patches around foreground are centred on a voxel of a structure, drawn from those that the case
    has. nnU-Net keeps their lower, but not their upper end within the image. Augmentation is left
    out: a patch is taken as large as the network sees it, and is not turned.

    Args:
        masks: The structures that are in the image.
        annotated: The voxels without ignore label, which the other patches are then centred on;
            None without an ignore label, when they are anywhere.
        patch: Size of a patch in voxels of the image.
        generator: Source of random numbers.

    Returns:
        By structure: the shares of random patches and of those around foreground.
    """
    if not masks:
        return {}
    shape = next(iter(masks.values())).shape
    voxels = {name: np.flatnonzero(mask) for name, mask in masks.items()}
    names = list(masks)
    chosen = [voxels[names[k]] for k in generator.integers(len(names), size=SAMPLES)]
    if annotated is None:
        random = _anywhere(shape, patch, generator)
    else:
        random = _around([np.flatnonzero(annotated)] * SAMPLES, shape, patch, generator)
    forced = _around(chosen, shape, patch, generator)
    return {
        name: (_share(mask, random, patch), _share(mask, forced, patch))
        for name, mask in masks.items()
    }


def _anywhere(
    shape: Sequence[int], patch: Sequence[int], generator: np.random.Generator
) -> list[Corner]:
    lowest, highest = _range(shape, patch)
    return list(generator.integers(lowest, highest + 1, size=(SAMPLES, len(shape))))


def _around(
    voxels: Sequence[npt.NDArray[np.int64]],
    shape: Sequence[int],
    patch: Sequence[int],
    generator: np.random.Generator,
) -> list[Corner]:
    lowest, _ = _range(shape, patch)
    centres = [np.unravel_index(generator.choice(indices), shape) for indices in voxels]
    return [np.maximum(lowest, np.array(centre) - np.array(patch) // 2) for centre in centres]


def _range(shape: Sequence[int], patch: Sequence[int]) -> tuple[Corner, Corner]:
    """Return the lowest and highest corner; an image smaller than the patch is padded evenly."""
    free = np.array(shape) - np.array(patch)
    return np.where(free < 0, free // 2, 0), np.where(free < 0, free // 2, free)


def _share(mask: Mask, corners: Sequence[Corner], patch: Sequence[int]) -> float:
    hits = 0
    for corner in corners:
        low, high = np.maximum(corner, 0), corner + np.array(patch)
        hits += bool(mask[tuple(map(slice, low, high))].any())
    return hits / len(corners)
