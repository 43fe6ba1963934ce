"""A synthetic brain tumour data set in nnU-Net's raw format, small enough to train on a CPU.

The phantom looks like a skull-stripped, contrast-enhanced T1 image with a glioma as in BraTS: edema
around a core that is partly rimmed by enhancing tumour. It has the difficulties of the real task:
the enhancing rim is a few voxels thick and a fraction of a percent of the volume, vessels are as
bright as the rim, cortex is as dark as edema, and there are a bias field, noise and partial volume.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

DATASET_ID = 900
DATASET_NAME = f"Dataset{DATASET_ID}_UnifiedLossPhantom"
FILE_ENDING = ".nii.gz"

LABELS: dict[str, int] = {"edema": 1, "non-enhancing core": 2, "enhancing": 3}
REGIONS: dict[str, tuple[int, ...]] = {
    "whole_tumour": (1, 2, 3),
    "tumour_core": (2, 3),
    "enhancing_tumour": (3,),
}

TRAINING_CASES = 15
TEST_CASES = 4

# all arrays are indexed (z, y, x), as in SimpleITK; voxels are 1 mm wide
SHAPE = (36, 52, 44)
BRAIN_SEMI_AXES = (15.0, 21.0, 17.5)
SCANNER_UNITS = 300.0

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
ImageArray = npt.NDArray[np.int16]
LabelArray = npt.NDArray[np.uint8]


def phantom_case(number: int) -> tuple[ImageArray, LabelArray]:
    """Synthesise the image and the label map of a case, the same in every run.

    Args:
        number: Number of the case, which seeds all of its random values.
    """
    rng = np.random.default_rng((DATASET_ID, number))
    centre = (np.array(SHAPE) - 1) / 2 + rng.uniform(-1, 1, 3)
    axes = np.array(BRAIN_SEMI_AXES) * rng.uniform(0.93, 1.03, 3)
    depth = _distance(centre, axes) + 0.04 * _smooth_noise(rng, 4.0)
    brain = depth < 1
    labels = _tumour(rng, brain, centre, axes)
    image = _acquire(rng, _tissue(rng, depth, centre, axes, labels), brain)
    return image, labels


def _distance(centre: FloatArray, axes: FloatArray | float) -> FloatArray:
    """Return the distance of every voxel from the centre, in units of the semi-axes."""
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    distance: FloatArray = np.sqrt((((grid - centre) / axes) ** 2).sum(axis=-1))
    return distance


def _smooth(array: FloatArray, sigma: float) -> FloatArray:
    smoothed: FloatArray = sitk.GetArrayFromImage(
        sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(array), sigma)
    )
    return smoothed


def _smooth_noise(rng: np.random.Generator, sigma: float) -> FloatArray:
    """Return a Gaussian random field of zero mean and unit variance, smoothed by ``sigma``."""
    field = _smooth(rng.standard_normal(SHAPE), sigma)
    normalised: FloatArray = (field - field.mean()) / field.std()
    return normalised


def _tumour(
    rng: np.random.Generator, brain: BoolArray, centre: FloatArray, axes: FloatArray
) -> LabelArray:
    """Return the label map of a tumour with irregular outlines in the inner half of the brain."""
    direction = rng.standard_normal(3)
    direction /= np.linalg.norm(direction)
    tumour_centre = centre + direction * axes * rng.uniform(0.3, 0.5)
    radius = rng.uniform(6.5, 9.5)
    core_radius = radius * rng.uniform(0.52, 0.68)
    core_centre = tumour_centre + rng.uniform(-1.5, 1.5, 3)

    elongation = rng.uniform(0.85, 1.15, 3)
    whole_distance = _distance(tumour_centre, elongation) + 1.0 * _smooth_noise(rng, 2.5)
    core_distance = _distance(core_centre, elongation) + 0.7 * _smooth_noise(rng, 2.0)
    # in places the thickness falls to zero, so the rim has gaps as real ones do
    rim = rng.uniform(1.0, 1.6) + 0.9 * _smooth_noise(rng, 3.0)

    whole = brain & (whole_distance < radius)
    core = whole & (core_distance < core_radius)
    enhancing = core & (core_distance > core_radius - rim)
    labels = np.zeros(SHAPE, np.uint8)
    labels[whole] = LABELS["edema"]
    labels[core] = LABELS["non-enhancing core"]
    labels[enhancing] = LABELS["enhancing"]
    return labels


def _tissue(
    rng: np.random.Generator,
    depth: FloatArray,
    centre: FloatArray,
    axes: FloatArray,
    labels: LabelArray,
) -> FloatArray:
    """Return noise-free intensities relative to white matter; they vary from case to case."""

    def shade(mean: float) -> float:
        return float(mean + rng.normal(0, 0.03))

    tissue = np.full(SHAPE, shade(1.0))
    tissue[depth > 0.82 + 0.06 * _smooth_noise(rng, 2.0)] = shade(0.8)  # cortex
    for side in (-1, 1):
        ventricle = centre + np.array([0.05, 0.0, 0.2 * side]) * axes
        tissue[_distance(ventricle, np.array([2.5, 8.0, 2.0])) < 1] = shade(0.35)
    for _ in range(6):  # vessels, bright because of the contrast agent
        position = centre + rng.uniform(-0.65, 0.65, 3) * axes
        tissue[_distance(position, rng.uniform(0.8, 3.0, 3)) < 1] = shade(1.4)
    tissue[labels == LABELS["edema"]] = shade(0.75)
    tissue[labels == LABELS["non-enhancing core"]] = shade(0.5)
    tissue[labels == LABELS["enhancing"]] = shade(1.35)
    tissue[depth >= 1] = 0
    return tissue


def _acquire(rng: np.random.Generator, tissue: FloatArray, brain: BoolArray) -> ImageArray:
    """Add partial volume, texture, bias field and noise; voxels outside of the brain are zero."""
    image = _smooth(tissue, 0.7) * (1 + 0.05 * _smooth_noise(rng, 1.5))
    image *= np.exp(0.12 * _smooth_noise(rng, 12.0))
    image += 0.06 * rng.standard_normal(SHAPE)
    # nnU-Net treats voxels that are exactly 0 as background, so the brain is at least 1
    scaled = np.maximum(np.rint(image * SCANNER_UNITS), 1) * brain
    return scaled.astype(np.int16)


def write_phantom_dataset(raw_folder: Path) -> Path:
    """Write the data set into nnU-Net's raw folder, unless it already exists.

    It is written under another name and renamed at the end, so it is never incomplete.

    Args:
        raw_folder: The folder that ``nnUNet_raw`` names; it is created if it does not exist.

    Returns:
        The data set's folder.

    Raises:
        FileExistsError: The folder exists, but has no ``dataset.json``.
    """
    folder = raw_folder / DATASET_NAME
    if (folder / "dataset.json").exists():
        return folder
    if folder.exists():
        raise FileExistsError(f"{folder}: has lost its dataset.json; remove it and run this again")
    unfinished = raw_folder / f"unfinished_{DATASET_NAME}"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        for number in range(TRAINING_CASES + TEST_CASES):
            _write_case(unfinished, "Tr" if number < TRAINING_CASES else "Ts", number)
        (unfinished / "dataset.json").write_text(json.dumps(_dataset_json(), indent=2) + "\n")
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _write_case(folder: Path, split: str, number: int) -> None:
    image, labels = phantom_case(number)
    name = f"phantom_{number:03d}"
    for subfolder, array, suffix in (("images", image, "_0000"), ("labels", labels, "")):
        target = folder / f"{subfolder}{split}"
        target.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(
            sitk.GetImageFromArray(array), str(target / f"{name}{suffix}{FILE_ENDING}"), True
        )


def _dataset_json() -> dict[str, object]:
    regions = {
        name: labels[0] if len(labels) == 1 else list(labels) for name, labels in REGIONS.items()
    }
    return {
        "name": DATASET_NAME,
        "description": "Synthetic brain tumours with nested regions, for demonstration only",
        "channel_names": {"0": "T1ce"},
        "labels": {"background": 0, **regions},
        "regions_class_order": [1, 2, 3],
        "numTraining": TRAINING_CASES,
        "file_ending": FILE_ENDING,
    }


def read_array(path: Path) -> npt.NDArray[Any]:
    """Read an image file as an array indexed (z, y, x)."""
    array: npt.NDArray[Any] = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return array
