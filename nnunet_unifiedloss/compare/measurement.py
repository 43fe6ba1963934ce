"""Metrics that nnU-Net does not write, measured on its validation's segmentations.

Cases are measured in parallel; what was measured is kept in a file beside the predictions and is
measured again when a prediction, its reference or the settings change.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_unifiedloss._support.files import write_atomically
from nnunet_unifiedloss.compare.metrics import Structure, structure_metrics
from nnunet_unifiedloss.results.trainings import read_json
from nnunet_unifiedloss.results.validation import Labels, Segmentation

__all__ = [
    "LabelImage",
    "MeasuredCase",
    "Progress",
    "geometry_error",
    "measure",
    "read_label_image",
]

CACHE_NAME = "unifiedloss_metrics.json"
CACHE_VERSION = 1
SECONDS_BETWEEN_SAVES = 10.0

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class MeasuredCase:
    """Metrics of one prediction.

    Attributes:
        metrics: By structure: the metrics of :func:`structure_metrics` and the counts TP, FP, FN.
        voxel: Volume of a voxel in mm³ (mm² of an image with two axes).
        diagonal: Diagonal of the image in mm, the largest distance there can be.
        error: Reason why nothing could be measured, with file and remedy; empty without one.
    """

    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    voxel: float = math.nan
    diagonal: float = math.nan
    error: str = ""


def measure(
    segmentations: Sequence[Segmentation],
    *,
    tolerance: float | None = None,
    processes: int = 1,
    progress: Progress | None = None,
) -> dict[Path, MeasuredCase]:
    """Measure predictions, or read earlier measurements.

    Args:
        segmentations: The predictions and their references.
        tolerance: Tolerance of the normalised surface distance in mm; None for the largest spacing
            of each image.
        processes: Number of processes.
        progress: Called with how many predictions are done and how many there are.

    Returns:
        What was measured, by the file of the prediction. A file that cannot be read or does not
        fit its reference has an ``error`` and loses no other.
    """
    cache = _Cache(segmentations, tolerance)
    groups = _by_reference(item for item in segmentations if item.prediction not in cache.known)
    report = progress or (lambda done, total: None)
    report(len(cache.known), len(segmentations))
    try:
        for measured in _measure_all(groups, tolerance, processes):
            cache.add(measured)
            report(len(cache.known), len(segmentations))
    finally:
        cache.save()
    return cache.known


def _by_reference(segmentations: Iterable[Segmentation]) -> list[list[Segmentation]]:
    """Group predictions by their reference, so that each reference is read once."""
    groups: dict[tuple[Path, str], list[Segmentation]] = {}
    for item in segmentations:
        groups.setdefault((item.reference, repr(item.labels)), []).append(item)
    return list(groups.values())


def _measure_all(
    groups: list[list[Segmentation]], tolerance: float | None, processes: int
) -> Iterator[dict[Path, MeasuredCase]]:
    if processes == 1 or len(groups) < 2:
        yield from (_measure_group(group, tolerance) for group in groups)
        return
    # as nnU-Net does: forked workers would inherit locks of threads that they do not have
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(groups)), mp_context=context) as pool:
        try:
            futures = [pool.submit(_measure_group, group, tolerance) for group in groups]
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _measure_group(group: list[Segmentation], tolerance: float | None) -> dict[Path, MeasuredCase]:
    """Measure all predictions of one reference."""
    first = group[0]
    try:
        reference = read_label_image(first.reference, first.labels)
    except Exception as error:  # readers raise any exception
        failed = MeasuredCase(error=_unreadable(first.reference, error, "restore this reference"))
        return {item.prediction: failed for item in group}
    structures = reference.structures(first.labels)
    return {item.prediction: _measure_one(item, reference, structures, tolerance) for item in group}


def _measure_one(
    item: Segmentation,
    reference: LabelImage,
    structures: Mapping[str, Structure],
    tolerance: float | None,
) -> MeasuredCase:
    remedy = "predict this case again with nnUNetv2_train … --val"
    try:
        prediction = read_label_image(item.prediction, item.labels)
    except Exception as error:  # readers raise any exception
        return MeasuredCase(error=_unreadable(item.prediction, error, remedy))
    mismatch = geometry_error(reference.properties, prediction.properties)
    if reference.array.shape != prediction.array.shape:
        mismatch = f"shape {prediction.array.shape} instead of {reference.array.shape}"
    if mismatch:
        return MeasuredCase(
            error=f"{item.prediction}: does not fit its reference {item.reference}: {mismatch}; "
            f"remedy: {remedy}"
        )
    tolerance = max(reference.steps) if tolerance is None else tolerance
    metrics = {}
    for name, predicted in prediction.structures(item.labels, reference.ignored).items():
        expected = structures[name]
        true_positives = int(np.count_nonzero(expected.mask & expected.overlap(predicted)))
        metrics[name] = structure_metrics(expected, predicted, tolerance) | {
            "TP": true_positives,
            "FP": predicted.size - true_positives,
            "FN": expected.size - true_positives,
        }
    return MeasuredCase(metrics, math.prod(reference.steps), reference.diagonal)


def _unreadable(path: Path, error: Exception, remedy: str) -> str:
    if not path.is_file():
        return f"{path}: there is no such file; remedy: {remedy}"
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return f"{path}: cannot be read ({reason[-1]}); remedy: {remedy}"


class LabelImage:
    """A label image: its array, spacing and geometry.

    Args:
        array: The label values.
        properties: The properties that nnU-Net's reader returns.
        ignored: The ignore label, or None.
    """

    def __init__(
        self, array: npt.NDArray[Any], properties: Mapping[str, Any], ignored: int | None
    ) -> None:
        self.array = array
        self.properties = properties
        self.spacing = [float(step) for step in properties["spacing"]]
        self.ignored = None if ignored is None else array == ignored
        # nnU-Net gives an image of two axes a third one of length 1 with a spacing of its own
        extents = list(zip(array.shape, self.spacing, strict=True))
        extents = [(length, step) for length, step in extents if length > 1] or extents[-1:]
        self.steps = [step for _, step in extents]
        self.diagonal = math.hypot(*(length * step for length, step in extents))

    def structures(
        self, labels: Labels, ignored: npt.NDArray[np.bool_] | None = None
    ) -> dict[str, Structure]:
        """The structures of this image, without the voxels that are ignored."""
        ignored = self.ignored if ignored is None else ignored
        return {
            name: Structure(np.isin(self.array, values), self.spacing, ignored)
            for name, values in labels.structures.items()
        }


def read_label_image(path: Path, labels: Labels) -> LabelImage:
    """Read a segmentation or reference with nnU-Net's reader, which may raise any exception."""
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    array, properties = recursive_find_reader_writer_by_name(labels.reader)().read_seg(str(path))
    return LabelImage(array[0], properties, labels.ignored)


def geometry_error(reference: Mapping[str, Any], prediction: Mapping[str, Any]) -> str:
    """Difference in the geometry of two images, as nnU-Net's readers describe it; empty if none.

    Example:
        >>> geometry_error({"spacing": (3, 1, 1)}, {"spacing": (3, 1, 1.5)})
        'spacing (3, 1, 1.5) instead of (3, 1, 1)'
    """
    named = [("spacing", reference["spacing"], prediction["spacing"])]
    for reader in ("sitk_stuff", "nibabel_stuff"):
        ours, theirs = reference.get(reader, {}), prediction.get(reader, {})
        named += [
            (name.replace("_", " "), np.ravel(ours[name]), np.ravel(theirs[name]))
            for name in ("origin", "direction", "original_affine")
            if name in ours and name in theirs
        ]
    for name, expected, found in named:
        if len(expected) != len(found) or not np.allclose(expected, found, rtol=1e-3, atol=1e-3):
            return f"{name} {_numbers(found)} instead of {_numbers(expected)}"
    return ""


def _numbers(values: Iterable[float]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"


class _Cache:
    """Earlier measurements, kept in a file beside the predictions of each fold.

    Args:
        segmentations: All that will be asked for.
        tolerance: As in :func:`measure`.
    """

    def __init__(self, segmentations: Iterable[Segmentation], tolerance: float | None) -> None:
        self.known: dict[Path, MeasuredCase] = {}
        self._keys: dict[Path, list[Any]] = {}
        self._entries: dict[Path, dict[str, Any]] = {}  # by folder: the content of its file
        self._unsaved: set[Path] = set()
        self._saved_at = time.monotonic()
        for item in segmentations:
            self._keys[item.prediction] = key = _key(item, tolerance)
            folder = item.prediction.parent
            if folder not in self._entries:
                self._entries[folder] = _read_cache(folder / CACHE_NAME)
            entry = self._entries[folder].get(item.prediction.name)
            if isinstance(entry, dict) and entry.get("key") == key:
                case = entry["metrics"], entry["voxel"], entry["diagonal"]
                self.known[item.prediction] = MeasuredCase(*case)

    def add(self, measured: Mapping[Path, MeasuredCase]) -> None:
        """Add measurements; errors are not kept for the next time."""
        for path, case in measured.items():
            self.known[path] = case
            if not case.error:
                content = {"metrics": case.metrics, "voxel": case.voxel, "diagonal": case.diagonal}
                self._entries[path.parent][path.name] = {"key": self._keys[path]} | content
                self._unsaved.add(path.parent)
        if time.monotonic() - self._saved_at > SECONDS_BETWEEN_SAVES:
            self.save()

    def save(self) -> None:
        """Write new measurements; in a read-only folder they are measured again next time."""
        for folder in self._unsaved:
            content = {"version": CACHE_VERSION, "cases": self._entries[folder]}
            try:
                write_atomically(folder / CACHE_NAME, json.dumps(content))
            except OSError:
                continue
        self._unsaved.clear()
        self._saved_at = time.monotonic()


def _key(item: Segmentation, tolerance: float | None) -> list[Any]:
    """Everything that the measured values depend on, in types that JSON preserves."""
    labels = item.labels
    structures = {name: list(values) for name, values in labels.structures.items()}
    files = [_fingerprint(item.prediction), _fingerprint(item.reference)]
    return [*files, structures, labels.ignored, labels.reader, tolerance]


def _fingerprint(path: Path) -> list[int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _read_cache(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    known = isinstance(content, dict) and content.get("version") == CACHE_VERSION
    cases = content.get("cases") if known else None
    return cases if isinstance(cases, dict) else {}
