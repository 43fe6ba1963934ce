"""The labels, the plans and the configuration of a data set on disk."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from nnunet_unifiedloss.results.plans import STANDARD_CONFIGURATIONS, Plans
from nnunet_unifiedloss.results.trainings import (
    DEFAULT_PLANS,
    FOLDERS,
    dataset_name,
    nnunet_folder,
    read_json,
)
from nnunet_unifiedloss.results.validation import Labels, labels_from

__all__ = ["Grid", "Source", "find_plans", "find_source", "select_grid"]

FORMAT = "github.com/MIC-DKFZ/nnUNet, documentation/dataset_format.md"


@dataclass(frozen=True)
class Source:
    """The label files of a data set.

    Attributes:
        dataset: Name of the data set.
        files: The label file of each case, sorted.
        labels: The structures and the reader.
        description: The ``dataset.json`` that defines the labels.
    """

    dataset: str
    files: tuple[Path, ...]
    labels: Labels
    description: Path

    @property
    def allowed(self) -> frozenset[int]:
        """The values that a label file may hold."""
        values = {0}.union(*self.labels.structures.values())
        return frozenset(values if self.labels.ignored is None else values | {self.labels.ignored})


@dataclass(frozen=True)
class Grid:
    """The resolution and the patches of a configuration.

    Attributes:
        configuration: ``2d``, ``3d_fullres``, …
        plans: Identifier of the plans; None where the data set has none.
        axes: nnU-Net's ``transpose_forward``.
        spacing: Spacing of the configuration; two values leave the first axis as it is.
        patch: Patch size, None without plans.
        batch: Batch size, None without plans.
    """

    configuration: str
    plans: str | None = None
    axes: tuple[int, ...] = (0, 1, 2)
    spacing: tuple[float, ...] | None = None
    patch: tuple[int, ...] | None = None
    batch: int | None = None


def find_source(name_or_id: str | int) -> Source:
    """Find the labels of a data set: ``nnUNet_raw``'s, otherwise ``nnUNet_preprocessed``'s.

    Raises:
        ValueError: The data set, its ``dataset.json`` or its labels are missing or malformed.
    """
    dataset = _existing(name_or_id)
    tried = []
    for variable, labels in (
        ("nnUNet_raw", "labelsTr"),
        ("nnUNet_preprocessed", "gt_segmentations"),
    ):
        if os.environ.get(variable):
            folder = nnunet_folder(variable) / dataset
            description = folder / "dataset.json"
            content = _read_description(description) if description.is_file() else None
            if content is not None and (files := _label_files(folder, labels, content)):
                reader = _reader(content, files[0])
                return Source(dataset, files, labels_from(content["labels"], reader), description)
            missing = "no file of labels" if content is not None else "no dataset.json"
            tried.append(f"{folder / labels if content is not None else folder} has {missing}")
    raise ValueError(
        f"data set {dataset}: has no labels, as {' and '.join(tried)}; remedy: put the labels of "
        f"the training cases into labelsTr, with the file_ending of dataset.json ({FORMAT})"
    )


def _existing(name_or_id: str | int) -> str:
    """Return the name of a data set that exists, or raise with the closest name."""
    folders = [Path(os.environ[name]) for name in FOLDERS[:2] if os.environ.get(name)]
    known = sorted({path.name for folder in folders for path in folder.glob("Dataset???_*")})
    hint = f"; the closest is {_closest(str(name_or_id), known)}" if known else ""
    try:
        dataset = dataset_name(name_or_id)
    except ValueError as error:
        remedy = "" if "remedy" in str(error) else "; remedy: give one of these"
        raise ValueError(f"{error}{remedy}{hint}") from error
    if dataset not in known:
        where = ", ".join(map(str, folders)) or "nowhere: nnU-Net's folders are not set"
        raise ValueError(
            f"data set {dataset}: there is no such folder (looked in {where}); remedy: check the "
            f"name, {' and '.join(FOLDERS[:2])}{hint}"
        )
    return dataset


def _closest(text: str, names: Iterable[str]) -> str:
    """Return the most similar name of a data set.

    Example:
        >>> _closest("hipocampus", ["Dataset004_Hippocampus", "Dataset006_IDRiD"])
        'Dataset004_Hippocampus'
        >>> _closest("7", ["Dataset004_Hippocampus", "Dataset006_IDRiD"])
        'Dataset006_IDRiD'
    """
    if text.isdecimal():
        return min(names, key=lambda name: abs(int(name[7:10]) - int(text)))

    def similarity(name: str) -> float:
        forms = (name, name.partition("_")[2])
        return max(SequenceMatcher(None, text.lower(), form.lower()).ratio() for form in forms)

    return max(names, key=similarity)


def _read_description(path: Path) -> dict[str, Any]:
    content = read_json(path)
    for key, kind in (("labels", dict), ("file_ending", str)):
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise ValueError(f"{path}: has no {key!r}; remedy: add it ({FORMAT})")
    labels = content["labels"]
    if labels.get("background") != 0 or not labels.keys() - {"background", "ignore"}:
        raise ValueError(
            f"{path}: labels are {labels}, without 'background': 0 or without another label; "
            f"remedy: add it ({FORMAT})"
        )
    return dict(content)


def _label_files(folder: Path, labels: str, content: dict[str, Any]) -> tuple[Path, ...]:
    """Return the label files of a folder, or those that ``dataset.json`` lists."""
    if labels == "labelsTr" and isinstance(content.get("dataset"), dict):
        return tuple(folder / case["label"] for _, case in sorted(content["dataset"].items()))
    files = (folder / labels).glob(f"*{content['file_ending']}")
    return tuple(sorted(path for path in files if not path.name.startswith(".")))


def _reader(content: dict[str, Any], example: Path) -> str:
    """Return the name of the reader that nnU-Net selects."""
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    with contextlib.redirect_stderr(io.StringIO()):  # nnU-Net prints why other readers failed
        try:
            reader = determine_reader_writer_from_dataset_json(content, str(example), verbose=False)
        except RuntimeError as error:
            raise ValueError(
                f"{example}: no reader of nnU-Net reads it; remedy: restore this file, or correct "
                "file_ending in dataset.json"
            ) from error
    return str(reader.__name__)


def find_plans(dataset: str, identifier: str | None) -> Plans | None:
    """Return the plans of a data set; None if it is not planned.

    Raises:
        ValueError: Plans were asked for that do not exist.
    """
    folder = Path(os.environ.get("nnUNet_preprocessed", "")) / dataset
    plans = Plans(folder, identifier or DEFAULT_PLANS)
    if os.environ.get("nnUNet_preprocessed") and plans.exist:
        return plans
    if identifier is not None:
        there = ", ".join(sorted(path.stem for path in folder.glob("*Plans*.json"))) or "none"
        raise ValueError(
            f"-p {identifier}: {plans.file} does not exist, plans of this data set: {there}; "
            f"remedy: nnUNetv2_plan_experiment -d {dataset}, or leave out -p"
        )
    return None


def select_grid(plans: Plans | None, configuration: str | None, planar: bool) -> Grid:
    """Return the resolution and patches of a configuration, by default ``3d_fullres`` or ``2d``.

    Args:
        plans: Plans of the data set, if it is planned.
        configuration: Its name; None for the default.
        planar: True if the images have two axes, for which nnU-Net plans ``2d`` only.

    Raises:
        ValueError: The configuration does not exist.
    """
    planned = ["2d"] if planar else list(STANDARD_CONFIGURATIONS)
    names = list(plans.configurations) if plans else planned
    default = "3d_fullres" if "3d_fullres" in names else "2d" if "2d" in names else names[0]
    name = configuration or default
    if name not in names:
        whose = str(plans.file) if plans else "nnU-Net, for this data set without plans,"
        raise ValueError(
            f"-c {name}: {whose} has no such configuration, but {', '.join(names)}; remedy: "
            f"-c {_closest(name, names)}" + (", or add it to the plans" if plans else "")
        )
    if plans is None:
        return Grid(name)
    spacing, patch = plans.setting(name, "spacing"), plans.setting(name, "patch_size")
    axes = read_json(plans.file).get("transpose_forward", (0, 1, 2))
    batch = plans.setting(name, "batch_size")
    if not spacing or not patch or not batch:
        raise ValueError(
            f"{plans.file}: configuration {name} has no spacing, patch_size or batch_size; remedy: "
            "nnUNetv2_plan_experiment writes them"
        )
    return Grid(name, plans.identifier, tuple(axes), tuple(spacing), tuple(patch), int(batch))
