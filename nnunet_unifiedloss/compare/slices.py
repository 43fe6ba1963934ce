"""A slice of a case: image, reference and prediction side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgb

from nnunet_unifiedloss.compare.comparison import Comparison
from nnunet_unifiedloss.compare.measurement import LabelImage, read_label_image
from nnunet_unifiedloss.compare.metrics import METRICS
from nnunet_unifiedloss.results.trainings import Training, nnunet_folder, read_json
from nnunet_unifiedloss.results.validation import first_existing, read_labels, reference_folders

__all__ = ["Picture", "worst_case_picture"]

# edge colours of the label values, told apart with any kind of colour vision
LABEL_COLOURS = ("#56B4E9", "#E69F00", "#F0E442", "#009E73", "#CC79A7", "#D55E00", "#0072B2")
OPACITY = 0.4
GAP = 2
MARGIN = 12


@dataclass(frozen=True)
class Picture:
    """Panels side by side.

    Attributes:
        pixels: RGB in [0, 1], shape (height, width, 3).
        aspect: Height of a pixel relative to its width.
        title: The case and its score.
        panels: Titles of the panels, from the left.
        colours: Colour of each structure.
    """

    pixels: npt.NDArray[np.float64]
    aspect: float
    title: str
    panels: tuple[str, ...]
    colours: dict[str, str]


def worst_case_picture(comparison: Comparison, method: str, dataset: str) -> Picture:
    """The case on which a method has its worst value of the primary metric.

    The slice is the one of the reference's on which the prediction is most wrong, cut out.

    Raises:
        ValueError: The method has no value on any case, or a file is missing or unreadable.
    """
    metric = comparison.settings.primary
    scores = comparison.scores(dataset, metric, comparison.main_label)[method].dropna()
    if scores.empty:
        raise ValueError(f"{method} has no value of {metric} on {dataset}")
    worst = scores.idxmin() if METRICS[metric].higher_is_better else scores.idxmax()
    case = str(worst)
    training = next(
        (
            training
            for training, name in comparison.results.trainings.items()
            if name == method
            and training.dataset == dataset
            and _has_case(comparison, training, case)
        ),
        None,
    )
    if training is None:
        raise ValueError(f"the comparison knows no folder with {case} of {method} on {dataset}")
    folder = training.folder(nnunet_folder("nnUNet_results"))
    labels, ending = read_labels(folder.parent)
    prediction = read_label_image(folder / "validation" / f"{case}{ending}", labels)
    references = (place / f"{case}{ending}" for place in reference_folders(dataset))
    reference = read_label_image(first_existing(references), labels)
    image = _read_image(dataset, case, labels.reader, folder.parent / "dataset.json")
    title = f"{case} (fold {training.fold}): {metric} {scores[case]:.3f}"
    if image is not None and image.shape != reference.array.shape:
        image = None  # it belongs to another case
    values = {value for values in labels.structures.values() for value in values}
    by_size = sorted(labels.structures.items(), key=lambda item: len(item[1]))
    colours = {
        next(name for name, members in by_size if value in members): _colour(value)
        for value in sorted(values)
    }
    pixels, aspect, panels = _draw(image, reference, prediction)
    return Picture(pixels, aspect, title, panels, colours)


def _has_case(comparison: Comparison, training: Training, case: str) -> bool:
    table = comparison.results.table
    place = training.dataset, training.trainer, training.plans, training.configuration
    columns = ("dataset", "trainer", "plans", "configuration")
    chosen = (table["case"] == case) & (table["fold"] == training.fold)
    for column, value in zip(columns, place, strict=True):
        chosen &= table[column] == value
    return bool(chosen.any())


def _read_image(
    dataset: str, case: str, reader: str, dataset_file: Path
) -> npt.NDArray[Any] | None:
    """The first channel of a training image, or None where nnU-Net's raw data is not there."""
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    try:
        folder = nnunet_folder("nnUNet_raw") / dataset
        files = get_filenames_of_train_images_and_targets(str(folder), read_json(dataset_file))
        images = recursive_find_reader_writer_by_name(reader)().read_images(files[case]["images"])
    except (ValueError, OSError, KeyError, RuntimeError, AssertionError):
        return None
    return np.asarray(images[0][0])


def _draw(
    image: npt.NDArray[Any] | None, reference: LabelImage, prediction: LabelImage
) -> tuple[npt.NDArray[np.float64], float, tuple[str, ...]]:
    """Draw the panels; returns pixels, their aspect, and the titles."""
    axis = int(np.argmax(reference.spacing))
    across = tuple(other for other in range(reference.array.ndim) if other != axis)
    position = _most_telling(reference.array, prediction.array, across)
    expected, predicted = (item.array.take(position, axis) for item in (reference, prediction))
    window = _window((expected > 0) | (predicted > 0))
    grey = np.full(expected.shape, 0.5) if image is None else _grey(image.take(position, axis))
    shown = {"reference": expected, "prediction": predicted}
    panels = {name: _overlay(grey[window], labels[window]) for name, labels in shown.items()}
    if image is not None:
        panels = {"image": _overlay(grey[window], np.zeros_like(expected[window])), **panels}
    gap = np.ones((grey[window].shape[0], GAP, 3))
    pixels = np.concatenate([part for panel in panels.values() for part in (panel, gap)], axis=1)
    aspect = reference.spacing[across[0]] / reference.spacing[across[1]]
    return pixels, aspect, tuple(panels)


def _most_telling(
    reference: npt.NDArray[Any], prediction: npt.NDArray[Any], across: tuple[int, ...]
) -> int:
    """The slice with most wrong voxels, among those that contain the reference if any does."""
    wrong = np.count_nonzero(reference != prediction, axis=across)
    present = np.count_nonzero(reference > 0, axis=across)
    if present.any():
        wrong = np.where(present > 0, wrong + 1, 0)
    return int(np.argmax(wrong))


def _colour(value: int) -> str:
    return LABEL_COLOURS[(value - 1) % len(LABEL_COLOURS)]


def _window(foreground: npt.NDArray[np.bool_]) -> tuple[slice, ...]:
    """The foreground with a margin of half its size; the whole slice without foreground."""
    if not foreground.any():
        return (slice(None),) * foreground.ndim
    window = []
    for axis, length in enumerate(foreground.shape):
        found = np.flatnonzero(foreground.any(axis=1 - axis))
        margin = max(MARGIN, (found[-1] - found[0]) // 2)
        window.append(slice(max(found[0] - margin, 0), min(found[-1] + margin + 1, length)))
    return tuple(window)


def _grey(image: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The image between its 1st and 99th percentile, in [0, 1]."""
    low, high = np.nanpercentile(image, [1, 99])
    scaled = (np.nan_to_num(image.astype(float)) - low) / max(high - low, 1e-12)
    return np.asarray(np.clip(scaled, 0, 1))


def _overlay(grey: npt.NDArray[np.float64], labels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    pixels = np.repeat(grey[..., None], 3, axis=-1)
    for value in np.unique(labels[labels > 0]).astype(int):
        colour = np.array(to_rgb(_colour(int(value))))
        here = labels == value
        pixels[here] = (1 - OPACITY) * pixels[here] + OPACITY * colour
    return pixels
