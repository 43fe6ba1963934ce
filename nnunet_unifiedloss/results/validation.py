"""The results of nnU-Net's validation of a training: cases, files and voxel counts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_unifiedloss.results.trainings import Training, nnunet_folder, read_json, read_summary

__all__ = [
    "COUNTS",
    "Labels",
    "Segmentation",
    "ValidatedCase",
    "first_existing",
    "labels_from",
    "read_labels",
    "reference_folders",
    "validated_cases",
]

# the keys under which nnU-Net's summary.json counts voxels
COUNTS = ("TP", "FP", "FN", "TN", "n_pred", "n_ref")


@dataclass(frozen=True)
class Labels:
    """The structures of a model and the reader of its files.

    Attributes:
        structures: The label values of each structure (label or region), by its name.
        ignored: The ignore label, or None.
        reader: Name of nnU-Net's reader for the files.
    """

    structures: dict[str, tuple[int, ...]]
    ignored: int | None
    reader: str


@dataclass(frozen=True)
class Segmentation:
    """One prediction and its reference.

    Attributes:
        prediction: The predicted label map.
        reference: The reference label map.
        labels: The structures in both.
    """

    prediction: Path
    reference: Path
    labels: Labels = field(compare=False)


@dataclass(frozen=True)
class ValidatedCase:
    """One case of a validation: its files and nnU-Net's counts by structure."""

    name: str
    segmentation: Segmentation
    counts: dict[str, dict[str, float]]
    summary: Path


def validated_cases(training: Training, root: Path) -> list[ValidatedCase]:
    """Return the cases in a training's ``summary.json``.

    Args:
        training: A finished training.
        root: ``nnUNet_results``.

    Raises:
        ValueError: The summary, ``dataset.json`` or ``plans.json`` is malformed.
    """
    folder = training.folder(root)
    path = folder / "validation" / "summary.json"
    labels, ending = read_labels(folder.parent)
    by_values = {values: name for name, values in labels.structures.items()}
    references = reference_folders(training.dataset)
    cases = []
    for entry in read_summary(path)["metric_per_case"]:
        try:
            name = re.split(r"[/\\]", entry["prediction_file"])[-1].removesuffix(ending)
            found = {_label_values(key): counts for key, counts in entry["metrics"].items()}
            complete = all(set(COUNTS) <= set(counts) for counts in found.values())
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}: an entry of metric_per_case is not as nnU-Net writes it "
                f"({type(error).__name__}: {error}); remedy: nnUNetv2_train … --val writes it again"
            ) from error
        if found.keys() != by_values.keys() or not complete:
            raise ValueError(
                f"{path}: structures {', '.join(entry['metrics'])} with their counts are not those "
                f"of {folder.parent / 'dataset.json'}; remedy: nnUNetv2_train … --val writes it "
                "again"
            )
        counts = {by_values[values]: item for values, item in found.items()}
        reference = first_existing(folder / (name + ending) for folder in references)
        files = Segmentation(path.with_name(name + ending), reference, labels)
        cases.append(ValidatedCase(name, files, counts, path))
    return cases


def read_labels(model: Path) -> tuple[Labels, str]:
    """Return the structures of a trained model and the ending of its files."""
    dataset = _read_model_file(model, "dataset.json", {"labels": dict, "file_ending": str})
    plans = _read_model_file(model, "plans.json", {"image_reader_writer": str})
    return labels_from(dataset["labels"], plans["image_reader_writer"]), dataset["file_ending"]


def labels_from(named: Mapping[str, Any], reader: str) -> Labels:
    """Return the structures that ``labels`` in a ``dataset.json`` defines.

    Example:
        >>> labels_from({"background": 0, "lesion": [1, 2], "ignore": 3}, "SimpleITKIO")
        Labels(structures={'lesion': (1, 2)}, ignored=3, reader='SimpleITKIO')
    """
    values = {name: _label_values(value) for name, value in named.items()}
    ignored = values.pop("ignore", None)
    structures = {name: labels for name, labels in values.items() if labels != (0,)}
    return Labels(structures, ignored[0] if ignored else None, reader)


def _read_model_file(model: Path, name: str, needed: Mapping[str, type]) -> dict[str, Any]:
    path = model / name
    remedy = "remedy: copy it from nnUNet_preprocessed"
    if not path.is_file():
        raise ValueError(
            f"{path}: there is no such file, though nnU-Net writes it beside every training; "
            + remedy
        )
    content = read_json(path)
    for key, kind in needed.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise ValueError(f"{path}: has no {key!r}, which nnU-Net writes; {remedy}")
    return dict(content)


def _label_values(label: object) -> tuple[int, ...]:
    """Return the values of a label or region from ``dataset.json`` or ``summary.json``.

    Example:
        >>> _label_values("(2, 1)"), _label_values([2, 1]), _label_values(3)
        ((1, 2), (1, 2), (3,))
    """
    return tuple(sorted(int(value) for value in re.findall(r"\d+", str(label))))


def reference_folders(dataset: str) -> list[Path]:
    """Return the possible folders of a data set's references, the preferred one first."""
    raw = os.environ.get("nnUNet_raw")
    folders = [nnunet_folder("nnUNet_preprocessed") / dataset / "gt_segmentations"]
    return folders + ([Path(raw) / dataset / "labelsTr"] if raw else [])


def first_existing(paths: Iterable[Path]) -> Path:
    """Return the first path that exists, otherwise the first."""
    candidates = list(paths)
    return next((path for path in candidates if path.is_file()), candidates[0])
