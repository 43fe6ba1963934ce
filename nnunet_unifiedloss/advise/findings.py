"""Findings about each structure of a data set, from the measurements of its cases."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_unifiedloss.advise.measurement import CaseMeasurement, StructureMeasurement
from nnunet_unifiedloss.advise.patches import oversampled_share
from nnunet_unifiedloss.advise.source import Grid

__all__ = ["TINY", "StructureFindings", "Volumes", "describe"]

TINY = 5  # voxels in the resolution of the configuration


@dataclass(frozen=True)
class Volumes:
    """Volumes of connected components, in mm³ or, for images with two axes, in mm²."""

    median: float
    smallest: float
    largest: float


@dataclass(frozen=True)
class StructureFindings:
    """Findings about one label or region; shares are between 0 and 1.

    Attributes:
        name: Its name in ``dataset.json``.
        share: Its share of the voxels, without those of the ignore label.
        cases_without: Number of cases without it.
        absent: Share of cases without it.
        components: Number of its connected components in all cases.
        per_case: Median number of components in the cases that have it.
        volumes: Of the components; None if there are none.
        tiny_components: Number of components below 5 voxels in the configuration's resolution.
        tiny: Share of components below 5 voxels.
        patches: Estimated share of nnU-Net's training patches with it; None without plans.
        tubular: Share of its volume in elongated components.
        rarest: Smallest share of a structure of the data set.
        largest_ratio: Largest share of a structure of the data set, divided by this one's.
        structures: Number of structures of the data set.
        axes: Number of axes of the images.
    """

    name: str
    share: float
    cases_without: int
    absent: float
    components: int
    per_case: float
    volumes: Volumes | None
    tiny_components: int
    tiny: float
    patches: float | None
    tubular: float
    rarest: float
    largest_ratio: float
    structures: int
    axes: int


def describe(cases: Sequence[CaseMeasurement], grid: Grid, axes: int) -> list[StructureFindings]:
    """Return the findings about each structure, in the sequence of ``dataset.json``."""
    total = sum(case.voxels for case in cases)
    shares = {
        name: sum(sum(case.structures[name].voxels) for case in cases) / max(total, 1)
        for name in cases[0].structures
    }
    present = [share for share in shares.values() if share]
    rarest, largest = min(present, default=0.0), max(present, default=0.0)
    findings = []
    for name, share in shares.items():
        without = sum(not case.structures[name].voxels for case in cases)
        counts = [
            len(case.structures[name].voxels) for case in cases if case.structures[name].voxels
        ]
        tiny = _tiny(cases, name)
        findings.append(
            StructureFindings(
                name=name,
                share=share,
                cases_without=without,
                absent=without / len(cases),
                components=sum(counts),
                per_case=statistics.median(counts) if counts else 0,
                volumes=_volumes(cases, name),
                tiny_components=tiny,
                tiny=tiny / max(sum(counts), 1),
                patches=_patches([case.structures[name] for case in cases], grid),
                tubular=_tubular([case.structures[name] for case in cases]),
                rarest=rarest,
                largest_ratio=largest / share if share else 1.0,
                structures=len(shares),
                axes=axes,
            )
        )
    return findings


def _volumes(cases: Sequence[CaseMeasurement], name: str) -> Volumes | None:
    volumes = [n * case.voxel for case in cases for n in case.structures[name].voxels]
    if not volumes:
        return None
    return Volumes(float(np.median(volumes)), min(volumes), max(volumes))


def _tiny(cases: Sequence[CaseMeasurement], name: str) -> int:
    """Count the components below 5 voxels in the resolution of the configuration."""
    return sum(
        n * case.voxel < TINY * case.target for case in cases for n in case.structures[name].voxels
    )


def _patches(cases: Sequence[StructureMeasurement], grid: Grid) -> float | None:
    """Return the share of patches with a structure: nnU-Net draws cases with equal probability."""
    seen = [case.patches for case in cases if case.patches is not None]
    if not seen or grid.batch is None:
        return None
    forced = oversampled_share(grid.batch)
    random_share, forced_share = np.mean(seen, axis=0).tolist()
    return float((1 - forced) * random_share + forced * forced_share)


def _tubular(cases: Sequence[StructureMeasurement]) -> float:
    measured = [case for case in cases if case.elongated is not None]
    volume = sum(sum(case.voxels) for case in measured)
    return sum(case.elongated or 0 for case in measured) / max(volume, 1)
