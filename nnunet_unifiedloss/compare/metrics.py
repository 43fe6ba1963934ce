"""Metrics of one segmented structure: overlap from counts, surfaces and lesions from the masks.

Definitions follow Metrics Reloaded (Maier-Hein, Reinke et al., Nature Methods 21, 2024), also for
structures that are absent: see :data:`METRICS` and :func:`counts_to_metrics`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import KDTree

__all__ = ["METRICS", "Metric", "Structure", "counts_to_metrics", "structure_metrics"]

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Metric:
    """Name and meaning of a metric.

    Attributes:
        name: Its name in tables.
        description: One line.
        higher_is_better: True if large values are good.
        unit: ``mm``, or nothing.
    """

    name: str
    description: str
    higher_is_better: bool = True
    unit: str = ""


METRICS = {
    metric.name: metric
    for metric in (
        Metric("Dice", "2 TP / (2 TP + FP + FN), voxels"),
        Metric("IoU", "TP / (TP + FP + FN), voxels"),
        Metric("Sensitivity", "TP / (TP + FN), voxels"),
        Metric("Precision", "TP / (TP + FP), voxels"),
        Metric("RVE", "relative volume error |n_pred − n_ref| / n_ref", higher_is_better=False),
        Metric("NSD", "normalised surface distance: share of both surfaces within the tolerance"),
        Metric(
            "HD95",
            "Hausdorff distance, the larger of the two directed 95th percentiles",
            higher_is_better=False,
            unit="mm",
        ),
        Metric(
            "ASD",
            "average symmetric surface distance",
            higher_is_better=False,
            unit="mm",
        ),
        Metric("LesionSensitivity", "share of reference lesions that a prediction overlaps"),
        Metric("LesionPrecision", "share of predicted lesions that overlap the reference"),
        Metric("LesionF1", "harmonic mean of lesion sensitivity and lesion precision"),
    )
}


def counts_to_metrics(counts: Mapping[str, float]) -> dict[str, float]:
    """Overlap metrics from the numbers of voxels.

    A quotient 0 / 0 is undefined and becomes NaN, so an absent structure that was not predicted
    has no value at all, and one that was predicted has Dice 0 and precision 0 but no sensitivity.

    Args:
        counts: ``TP``, ``FP`` and ``FN``, as in nnU-Net's ``summary.json``.

    Returns:
        Dice, IoU, Sensitivity, Precision and RVE.

    Example:
        >>> counts_to_metrics({"TP": 3, "FP": 1, "FN": 2})["Sensitivity"]
        0.6
        >>> counts_to_metrics({"TP": 0, "FP": 4, "FN": 0})
        {'Dice': 0.0, 'IoU': 0.0, 'Sensitivity': nan, 'Precision': 0.0, 'RVE': nan}
    """
    tp, fp, fn = (float(counts[name]) for name in ("TP", "FP", "FN"))
    return {
        "Dice": _ratio(2 * tp, 2 * tp + fp + fn),
        "IoU": _ratio(tp, tp + fp + fn),
        "Sensitivity": _ratio(tp, tp + fn),
        "Precision": _ratio(tp, tp + fp),
        "RVE": _ratio(abs(fp - fn), tp + fn),
    }


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


class Structure:
    """The surface and the lesions of one mask, computed once and compared with many others.

    The surface are the voxels of the mask with a face neighbour outside of it; beyond the image
    everything is outside. Ignored voxels are in no mask, and a mask that ends at them has no
    surface there. Lesions are components connected by faces, edges or corners. Axes of length 1
    do not count: a single slice has a contour, not two sides.

    Args:
        mask: Where the structure is.
        spacing: Size of a voxel along each axis, in mm.
        ignored: Voxels that do not count.
    """

    def __init__(self, mask: Mask, spacing: Sequence[float], ignored: Mask | None = None) -> None:
        axes = [axis for axis, length in enumerate(mask.shape) if length > 1] or [0]
        shape = [mask.shape[axis] for axis in axes]
        self.spacing = np.asarray([spacing[axis] for axis in axes], dtype=float)
        ignored = np.zeros_like(mask) if ignored is None else ignored
        counted: Mask = (mask & ~ignored).reshape(shape)
        self.box = _box_around(counted)
        self.mask: Mask = counted[self.box].copy()  # only what is in the box is kept
        self.size = int(np.count_nonzero(self.mask))
        # all beyond the box is outside: it ends at the image's border or one voxel off the mask
        faces = ndimage.generate_binary_structure(self.mask.ndim, 1)
        closed = ndimage.binary_erosion(self.mask | ignored.reshape(shape)[self.box], faces)
        offset = np.array([part.start for part in self.box])
        self.surface = (np.argwhere(self.mask & ~closed) + offset) * self.spacing
        self.lesions, self.lesion_count = ndimage.label(self.mask, np.ones((3,) * self.mask.ndim))
        self._tree: KDTree | None = None

    def distances_from(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Distance in mm from each point to the nearest surface voxel of this structure."""
        if self._tree is None:
            self._tree = KDTree(self.surface)
        return np.asarray(self._tree.query(points)[0])

    def overlap(self, other: Structure) -> Mask:
        """The mask of another structure of the same image, inside this structure's box."""
        there = np.zeros_like(self.mask)
        common = [
            (max(a.start, b.start), min(a.stop, b.stop))
            for a, b in zip(self.box, other.box, strict=True)
        ]
        if all(start < stop for start, stop in common):
            place, source = (
                tuple(
                    slice(start - part.start, stop - part.start)
                    for (start, stop), part in zip(common, box, strict=True)
                )
                for box in (self.box, other.box)
            )
            there[place] = other.mask[source]
        return there

    def lesions_overlapping(self, other: Structure) -> int:
        """Number of lesions of this structure that share a voxel with the other one."""
        return int(np.count_nonzero(np.unique(self.lesions[self.overlap(other)])))


def _box_around(mask: Mask) -> tuple[slice, ...]:
    """The smallest box that holds the mask and a margin of one voxel where the image has one."""
    found = ndimage.find_objects(mask.astype(np.uint8))
    if not found:
        return (slice(0, 0),) * mask.ndim
    return tuple(
        slice(max(part.start - 1, 0), min(part.stop + 1, length))
        for part, length in zip(found[0], mask.shape, strict=True)
    )


def structure_metrics(
    reference: Structure, prediction: Structure, tolerance: float
) -> dict[str, float]:
    r"""Metrics of surfaces and lesions.

    With :math:`d_{RP}` the distances from the reference's surface voxels to the prediction's
    surface and :math:`d_{PR}` the other way round,

    .. math::
        NSD = \frac{|\{d_{RP} \le \tau\}| + |\{d_{PR} \le \tau\}|}{|S_R| + |S_P|}, \quad
        HD95 = \max(P_{95}(d_{RP}), P_{95}(d_{PR})), \quad
        ASD = \frac{\sum d_{RP} + \sum d_{PR}}{|S_R| + |S_P|}

    Args:
        reference: The reference's structure.
        prediction: The prediction's structure, of the same image.
        tolerance: τ in mm.

    Returns:
        NSD, HD95, ASD, LesionSensitivity, LesionPrecision and LesionF1. Without any structure all
        are NaN. Where one of the two is empty NSD is 0 and the distances are infinite; where one is
        not but lies among ignored voxels, without a surface, there is no distance at all: NaN.

    Example:
        >>> mask = np.zeros((5, 5), dtype=bool)
        >>> mask[1:3, 1:3] = True
        >>> shifted = np.roll(mask, 1, axis=0)
        >>> metrics = structure_metrics(Structure(mask, (2, 1)), Structure(shifted, (2, 1)), 1)
        >>> metrics["HD95"], metrics["ASD"], metrics["NSD"]
        (2.0, 1.0, 0.5)
    """
    metrics = _lesion_metrics(reference, prediction)
    surfaces = len(reference.surface), len(prediction.surface)
    one_is_empty = bool(reference.size) != bool(prediction.size)
    if not all(surfaces) and not one_is_empty:
        return metrics | dict.fromkeys(("NSD", "HD95", "ASD"), math.nan)
    if one_is_empty:
        return metrics | {"NSD": 0.0, "HD95": math.inf, "ASD": math.inf}
    from_reference = prediction.distances_from(reference.surface)
    from_prediction = reference.distances_from(prediction.surface)
    both = np.concatenate([from_reference, from_prediction])
    percentiles = np.percentile(from_reference, 95), np.percentile(from_prediction, 95)
    return metrics | {
        # rounding must not put a distance of one voxel beyond a tolerance of one voxel
        "NSD": float(np.mean(both <= tolerance * (1 + 1e-9))),
        "HD95": float(max(percentiles)),
        "ASD": float(both.mean()),
    }


def _lesion_metrics(reference: Structure, prediction: Structure) -> dict[str, float]:
    found = reference.lesions_overlapping(prediction)
    right = prediction.lesions_overlapping(reference)
    sensitivity = _ratio(found, reference.lesion_count)
    precision = _ratio(right, prediction.lesion_count)
    if not reference.size and not prediction.size:
        f1 = math.nan
    elif not found:
        f1 = 0.0
    else:
        f1 = 2 * sensitivity * precision / (sensitivity + precision)
    return {"LesionSensitivity": sensitivity, "LesionPrecision": precision, "LesionF1": f1}
