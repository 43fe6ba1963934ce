"""nnU-Net's folders with made-up segmentations, as its trainings would leave them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, save_summary_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_unifiedloss.results.trainings import FOLDERS, Training

PLAIN = {"background": 0, "lesion": 1}
TWO_LABELS = {"background": 0, "edema": 1, "core": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}

Predict = Callable[[np.ndarray, int], np.ndarray]


@dataclass
class ResultsFolder:
    """A data set in nnU-Net's three folders.

    Args:
        root: Where the three folders go.
        labels: As in ``dataset.json``.
        dataset: Name of the data set.
        spacing: Of all images, in the order of their arrays' axes.
    """

    root: Path
    labels: Mapping[str, object]
    dataset: str = "Dataset004_Made"
    spacing: tuple[float, ...] = (3.0, 1.0, 1.0)

    def environment(self) -> dict[str, str]:
        return {name: str(self.root / name) for name in FOLDERS}

    def path(self, variable: str) -> Path:
        folder = self.root / variable / self.dataset
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def add_cases(self, references: Mapping[str, np.ndarray]) -> None:
        """Write references, and images that look like them."""
        for name, labels in references.items():
            write(self.path("nnUNet_preprocessed") / "gt_segmentations", name, labels, self.spacing)
            image = labels.astype(np.float32) + np.random.default_rng(0).normal(
                0, 0.3, labels.shape
            )
            write(self.path("nnUNet_raw") / "imagesTr", f"{name}_0000", image, self.spacing)

    def add_training(
        self,
        trainer: str,
        cases: Iterable[str],
        predict: Predict,
        fold: int | str = 0,
        configuration: str = "3d_fullres",
    ) -> Training:
        """Write what a finished training leaves; ``predict`` makes it of a reference."""
        training = Training(self.dataset, configuration, "nnUNetPlans", trainer, str(fold))
        folder = training.folder(self.root / "nnUNet_results")
        validation = folder / "validation"
        validation.mkdir(parents=True)
        dataset = {
            "labels": self.labels,
            "channel_names": {"0": "MRI"},
            "file_ending": ".nii.gz",
            "numTraining": 1,
        }
        if any(isinstance(value, list) for value in self.labels.values()):
            dataset["regions_class_order"] = [1, 2]
        (folder.parent / "dataset.json").write_text(json.dumps(dataset))
        plans = {"image_reader_writer": "SimpleITKIO"}
        (folder.parent / "plans.json").write_text(json.dumps(plans))
        for number, name in enumerate(cases):
            reference = read(self.reference(name))
            write(validation, name, predict(reference, number), self.spacing)
        self.write_summary(training)
        (folder / "checkpoint_final.pth").write_bytes(b"")
        (folder / "training_log_2026_1_1_00_00_00.txt").write_text(training_log())
        return training

    def reference(self, name: str) -> Path:
        folder = self.path("nnUNet_preprocessed") / "gt_segmentations"
        return folder / f"{name}.nii.gz"

    def validation(self, training: Training) -> Path:
        return training.folder(self.root / "nnUNet_results") / "validation"

    def write_summary(self, training: Training) -> None:
        """Let nnU-Net's own code evaluate the predictions."""
        folder = self.validation(training)
        ignored = self.labels.get("ignore")
        structures = [
            tuple(value) if isinstance(value, list) else value
            for name, value in self.labels.items()
            if name not in ("background", "ignore")
        ]
        results = [
            compute_metrics(
                str(self.reference(path.name.removesuffix(".nii.gz"))),
                str(path),
                SimpleITKIO(),
                structures,
                ignored,
            )
            for path in sorted(folder.glob("*.nii.gz"))
        ]
        for result in results:
            for metrics in result["metrics"].values():
                metrics.update({name: float(value) for name, value in metrics.items()})
        summary = {"metric_per_case": results, "mean": {}, "foreground_mean": {}}
        save_summary_json(summary, str(folder / "summary.json"))


def training_log(epochs: int = 3) -> str:
    lines = []
    for epoch in range(epochs):
        lines += [
            f"2026-01-01 00:00:00.000000: Epoch {epoch} ",
            f"2026-01-01 00:00:00.000000: train_loss {1 - epoch / 10} ",
            f"2026-01-01 00:00:00.000000: val_loss {1.1 - epoch / 10} ",
            f"2026-01-01 00:00:00.000000: Pseudo dice [np.float32({epoch / 4}), np.float32(nan)] ",
        ]
    return "\n".join(lines) + "\n"


def ball(
    shape: tuple[int, ...], centre: tuple[float, ...], radius: float, spacing=None
) -> np.ndarray:
    """A ball of a radius in mm (in voxels without a spacing)."""
    spacing = np.ones(len(shape)) if spacing is None else np.asarray(spacing)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return np.linalg.norm((grid - np.asarray(centre)) * spacing, axis=-1) <= radius


def lesions(count: int, seed: int = 0, shape=(12, 24, 24)) -> dict[str, np.ndarray]:
    """References with one ball each, its core labelled 2, of sizes that differ tenfold."""
    generator = np.random.default_rng(seed)
    references = {}
    for number in range(count):
        radius = generator.uniform(2.5, 5.5)
        centre = generator.uniform(0.4, 0.6, size=3) * shape
        spacing = (2, 1, 1)
        labels = ball(shape, centre, radius, spacing).astype(np.uint8)
        labels[ball(shape, centre, radius / 2, spacing)] = 2
        references[f"case_{number:03d}"] = labels
    return references


def shifted(steps: int, noise: float = 0.0, seed: int = 0) -> Predict:
    """A prediction that is the reference, moved along the last axis and with wrong voxels."""

    def predict(reference: np.ndarray, number: int) -> np.ndarray:
        generator = np.random.default_rng((seed, number))
        moved = np.roll(reference, steps, axis=-1)
        wrong = generator.random(reference.shape) < noise
        return np.where(wrong, 1 - np.minimum(moved, 1), moved).astype(np.uint8)

    return predict


def write(folder: Path, name: str, array: np.ndarray, spacing: tuple[float, ...]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(step) for step in reversed(spacing)])
    path = folder / f"{name}.nii.gz"
    sitk.WriteImage(image, str(path))
    return path


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
