"""Label frequencies in the training cases, for losses that are weighted by them."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nnunet_unifiedloss._support.files import write_atomically

_ENTRY = {"modified", "voxels"}  # keys of the record of a case


class Dataset(Protocol):
    """The part of nnU-Net's preprocessed datasets that is used here."""

    source_folder: str

    def load_case(self, identifier: str) -> Sequence[Any]:
        """(data, segmentation, segmentation of the previous stage, properties)."""


def count_labels(dataset: Dataset, cases: Iterable[str], cache: Path) -> Counter[int]:
    """Voxels of each label in the preprocessed segmentations of some cases.

    Counts are kept for each case in a file, and updated if a segmentation has changed.

    Args:
        dataset: nnU-Net's dataset of the preprocessed cases.
        cases: Identifiers of the cases to sum over.
        cache: JSON file of the counts.

    Returns:
        Label → voxels. Those outside of the image (−1) count as background, as nnU-Net trains them.
    """
    known = _read(cache)
    total: Counter[int] = Counter()
    changed = False
    for case in cases:
        modified = _modified(Path(dataset.source_folder), case)
        if known.get(case, {}).get("modified") != modified:
            known[case] = {"modified": modified, "voxels": _count(dataset.load_case(case)[1])}
            changed = True
        total.update({int(label): n for label, n in known[case]["voxels"].items()})
    if changed:
        # preprocessed data may be shared and read-only; then they are counted every time
        with contextlib.suppress(OSError):
            write_atomically(cache, json.dumps(known, indent=1, sort_keys=True))
    return total


def inverse_frequencies(voxels: Sequence[int]) -> tuple[float, ...]:
    """Weights inverse to numbers of voxels, with a mean of 1.

    A class without voxels gets the largest of the other weights.

    Example:
        >>> inverse_frequencies([90, 10])
        (0.2, 1.8)
        >>> inverse_frequencies([3, 0, 1])
        (0.428571, 1.28571, 1.28571)
    """
    counts = np.asarray(voxels, float)
    if not counts.any():
        return (1.0,) * len(voxels)
    weights = 1 / np.where(counts > 0, counts, counts[counts > 0].min())
    return tuple(float(f"{weight:.6g}") for weight in weights / weights.mean())


def _read(cache: Path) -> dict[str, dict[str, Any]]:
    """Earlier counts; a broken or foreign file counts as empty."""
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError):
        return {}
    entries = known.items() if isinstance(known, dict) else ()
    return {case: e for case, e in entries if isinstance(e, dict) and e.keys() >= _ENTRY}


def _modified(folder: Path, case: str) -> int:
    """Time of the last change to the segmentation of a case, in ns."""
    for name in (f"{case}_seg.b2nd", f"{case}_seg.npy", f"{case}.npz"):
        path = folder / name
        if path.exists():
            return os.stat(path).st_mtime_ns
    raise FileNotFoundError(
        f"{folder}: has no preprocessed segmentation of case {case}; run nnUNetv2_preprocess again"
    )


def _count(segmentation: Any) -> dict[str, int]:  # noqa: ANN401 (NumPy's or blosc2's arrays)
    labels, voxels = np.unique(np.asarray(segmentation[0]), return_counts=True)
    counts: Counter[str] = Counter()
    for label, n in zip(labels, voxels, strict=True):
        counts[str(max(int(label), 0))] += int(n)
    return dict(counts)
