"""Sums over the window around each voxel of a plane, in compiled loops."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nnunet_unifiedloss.losses.compiled import Array, compiled


class WindowInPlanes(NamedTuple):
    """Weights from the centre outwards, through the planes and within them."""

    through: Array  # of a single plane: none but its own, 1
    within: Array
    columns: int  # of a plane


@compiled
def empty_plane(voxels: int) -> Array:
    """A plane to be filled."""
    plane: Array = np.empty(voxels, np.float32)
    return plane


@compiled
def sum_in_window(ring: Array, middle: int, window: WindowInPlanes, out: Array) -> None:
    """The window's sum around each voxel of a plane, 0 outside of the image."""
    through = _through(ring, middle, window.through) if len(ring) > 1 else ring[0]
    columns, margin = window.columns, len(window.within) - 1
    padded, nothing = np.zeros(columns + 2 * margin, np.float32), np.zeros(columns, np.float32)
    line = padded[margin : margin + columns]
    for start in range(0, out.size, columns):
        for shift in range(1, margin + 1):
            above, below = start - shift * columns, start + shift * columns
            before = through[above : above + columns] if above >= 0 else nothing
            after = through[below : below + columns] if below < out.size else nothing
            if shift == 1:
                centre = through[start : start + columns]
                for x in range(columns):
                    line[x] = window.within[0] * centre[x] + (before[x] + after[x])
            else:
                for x in range(columns):
                    line[x] += window.within[shift] * (before[x] + after[x])
        found = out[start : start + columns]
        for shift in range(1, margin + 1):
            before = padded[margin - shift : margin - shift + columns]
            after = padded[margin + shift : margin + shift + columns]
            if shift == 1:
                for x in range(columns):
                    found[x] = window.within[0] * line[x] + (before[x] + after[x])
            else:
                for x in range(columns):
                    found[x] += window.within[shift] * (before[x] + after[x])


@compiled
def _through(ring: Array, middle: int, weights: Array) -> Array:
    """The sum through the planes."""
    out: Array = empty_plane(ring.shape[1])
    centre = ring[middle % len(ring)]
    before, after = ring[(middle - 1) % len(ring)], ring[(middle + 1) % len(ring)]
    for i in range(out.size):
        out[i] = weights[0] * centre[i] + (before[i] + after[i])
    for shift in range(2, len(weights)):
        before, after = ring[(middle - shift) % len(ring)], ring[(middle + shift) % len(ring)]
        for i in range(out.size):
            out[i] += weights[shift] * (before[i] + after[i])
    return out
