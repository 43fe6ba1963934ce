"""Measurement of the label files of a data set, in several processes."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import signal
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_unifiedloss.advise.patches import patch_shape, patches_with
from nnunet_unifiedloss.advise.shape import elongated_volume
from nnunet_unifiedloss.advise.source import Grid, Source
from nnunet_unifiedloss.compare.measurement import LabelImage, read_label_image

__all__ = ["CaseMeasurement", "Progress", "StructureMeasurement", "is_planar", "measure_labels"]

# the shape of structures is judged on this many cases at most, as skeletons take time
SHAPE_CASES = 20

Mask = npt.NDArray[np.bool_]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class StructureMeasurement:
    """One structure in one case.

    Attributes:
        voxels: Number of voxels of each connected component.
        elongated: Number of voxels in elongated components; None if not measured.
        patches: Share of random patches with the structure, and of patches around foreground; None
            without plans.
    """

    voxels: tuple[int, ...] = ()
    elongated: int | None = None
    patches: tuple[float, float] | None = None


@dataclass(frozen=True)
class CaseMeasurement:
    """The labels of one case.

    Attributes:
        voxels: Number of voxels without ignore label.
        voxel: Volume of a voxel, in mm³ (mm² of an image with two axes).
        target: Volume of a voxel in the resolution of the configuration.
        structures: By name.
    """

    voxels: int
    voxel: float
    target: float
    structures: dict[str, StructureMeasurement]


def measure_labels(
    source: Source, grid: Grid, *, processes: int = 1, progress: Progress | None = None
) -> list[CaseMeasurement]:
    """Measure every case, sorted by file.

    Args:
        source: The label files.
        grid: Resolution and patches of the configuration.
        processes: Number of processes.
        progress: Called with how many cases are done and how many there are.

    Raises:
        ValueError: A file cannot be read, or holds a label that ``dataset.json`` does not list.
    """
    report = progress or (lambda done, total: None)
    report(0, len(source.files))
    found: dict[int, CaseMeasurement] = {}
    for index, case in _measure_all(source, grid, processes):
        found[index] = case
        report(len(found), len(source.files))
    return [found[index] for index in range(len(source.files))]


def _measure_all(
    source: Source, grid: Grid, processes: int
) -> Iterator[tuple[int, CaseMeasurement]]:
    every = math.ceil(len(source.files) / SHAPE_CASES)
    tasks = [(source, grid, index, index % every == 0) for index in range(len(source.files))]
    if processes == 1 or len(tasks) < 2:
        yield from (_measure(*task) for task in tasks)
        return
    # as nnU-Net does: forked workers would inherit locks of threads that they do not have
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(tasks)), context) as pool:
        try:
            with _interruptions_ignored():
                futures = [pool.submit(_measure, *task) for task in tasks]
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextlib.contextmanager
def _interruptions_ignored() -> Iterator[None]:
    """Ignore Ctrl-C, also in processes started meanwhile: it reaches all, and one shall report."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def is_planar(source: Source) -> bool:
    """Return True if the images have two axes, as seen in the first case."""
    return 1 in _read(source, source.files[0]).array.shape


def _measure(source: Source, grid: Grid, index: int, shape: bool) -> tuple[int, CaseMeasurement]:
    path = source.files[index]
    image = _read(source, path)
    counts = _count_labels(source, path, image.array)
    labels = image.array.transpose(grid.axes).astype(np.int32)
    spacing = [image.spacing[axis] for axis in grid.axes]
    structures = _structures(source, labels, shape)
    if grid.patch is not None and grid.spacing is not None:
        size = patch_shape(grid.patch, grid.spacing, spacing)
        generator = np.random.default_rng(zlib.crc32(path.name.encode()))
        structures = _with_patches(source, labels, structures, size, generator)
    voxel = math.prod(image.steps)
    target = _target_voxel(grid, spacing, planar=len(image.steps) == 2) or voxel
    total = labels.size - counts.get(_ignored(source), 0)
    return index, CaseMeasurement(total, voxel, target, structures)


def _read(source: Source, path: Path) -> LabelImage:
    try:
        return read_label_image(path, source.labels)
    except Exception as error:  # readers raise any exception
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ValueError(f"{path}: cannot be read ({reason}); remedy: restore this file") from error


def _count_labels(source: Source, path: Path, array: npt.NDArray[Any]) -> dict[int, int]:
    """Count the voxels of each label.

    Raises:
        ValueError: A value is not a label of ``dataset.json``.
    """
    largest = max(source.allowed)
    counts: dict[int, int] = {}
    unknown: set[float] = set()
    if array.min() >= 0 and array.max() <= largest and np.array_equal(array, np.rint(array)):
        counts = _count(array, largest)
        unknown.update(counts.keys() - source.allowed)
    else:
        unknown.update({*np.unique(array).tolist()} - source.allowed)
    if unknown:
        values = ", ".join(f"{value:g}" for value in sorted(unknown)[:5])
        known = ", ".join(map(str, sorted(source.allowed)))
        raise ValueError(
            f"{path}: holds the label {values}, but {source.description} lists {known}; remedy: "
            "correct the file, or add the label to dataset.json"
        )
    return counts


def _count(array: npt.NDArray[Any], largest: int) -> dict[int, int]:
    """Count the voxels of each label, slice by slice, which needs little memory."""
    counts = np.zeros(largest + 1, dtype=np.int64)
    for part in array:
        counts += np.bincount(part.ravel().astype(np.int64), minlength=largest + 1)
    return {int(label): int(counts[label]) for label in np.flatnonzero(counts)}


def _ignored(source: Source) -> int:
    return -1 if source.labels.ignored is None else source.labels.ignored


def _structures(
    source: Source, labels: npt.NDArray[np.int32], shape: bool
) -> dict[str, StructureMeasurement]:
    if 1 in labels.shape:  # an image of two axes
        labels = labels.squeeze(labels.shape.index(1))
    foreground = labels[_box(labels != 0)]
    return {
        name: _structure(np.isin(foreground, values), shape)
        for name, values in source.labels.structures.items()
    }


def _structure(mask: Mask, shape: bool) -> StructureMeasurement:
    """Measure the components of a structure, connected by faces, edges or corners."""
    import cc3d

    # as integers: of Boolean images with two axes, cc3d 4.1 leaves components in pieces
    found = mask[_box(mask)].astype(np.uint8)
    if not found.size:
        return StructureMeasurement(elongated=0 if shape else None)
    components = cc3d.connected_components(found, connectivity=26 if found.ndim == 3 else 8)
    voxels = cc3d.statistics(components)["voxel_counts"][1:].astype(np.int64)
    elongated = elongated_volume(components, voxels) if shape else None
    return StructureMeasurement(tuple(voxels.tolist()), elongated)


def _box(mask: Mask) -> tuple[slice, ...]:
    """Return the bounding box of a mask; empty slices if it is empty."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        found = np.flatnonzero(mask.any(axis=others))
        box.append(slice(found[0], found[-1] + 1) if len(found) else slice(0, 0))
    return tuple(box)


def _with_patches(
    source: Source,
    labels: npt.NDArray[np.int32],
    structures: Mapping[str, StructureMeasurement],
    size: Sequence[int],
    generator: np.random.Generator,
) -> dict[str, StructureMeasurement]:
    masks = {
        name: np.isin(labels, source.labels.structures[name])
        for name, structure in structures.items()
        if structure.voxels
    }
    annotated = None if source.labels.ignored is None else labels != source.labels.ignored
    seen = patches_with(masks, annotated, size, generator)
    return {
        name: StructureMeasurement(item.voxels, item.elongated, seen.get(name, (0.0, 0.0)))
        for name, item in structures.items()
    }


def _target_voxel(grid: Grid, spacing: Sequence[float], *, planar: bool) -> float | None:
    """Return the volume of a voxel of the configuration; None without plans."""
    if grid.spacing is None:
        return None
    kept: list[Any] = [] if planar else list(spacing[: len(spacing) - len(grid.spacing)])
    wanted = grid.spacing[-2:] if planar else grid.spacing
    return math.prod([*kept, *wanted])
