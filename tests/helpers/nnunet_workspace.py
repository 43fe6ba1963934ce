"""nnU-Net folders in a temporary place and its stock commands run in them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_unifiedloss.training.install import trainers_folder

SCENARIOS = {
    "plain": {"background": 0, "anterior": 1, "posterior": 2},
    "ignore": {"background": 0, "anterior": 1, "posterior": 2, "ignore": 3},
    "regions": {"background": 0, "hippocampus": [1, 2], "anterior": 1},
    "regions-ignore": {"background": 0, "hippocampus": [1, 2], "anterior": 1, "ignore": 3},
}
DATASET_ID = 4
CASES = 20


class Workspace:
    """One data set of one label scenario, planned for small networks.

    Args:
        folder: Where nnU-Net's three folders go.
        environment: Variables to add.
    """

    def __init__(self, folder: Path, **environment: str) -> None:
        self.raw, self.preprocessed, self.results = (
            folder / name for name in ("raw", "preprocessed", "results")
        )
        for path in (self.raw, self.preprocessed, self.results):
            path.mkdir(parents=True, exist_ok=True)
        self.environment = os.environ | {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            "nnUNet_extTrainer": str(trainers_folder()),
            "nnUNet_n_proc_DA": "2",
            "nnUNet_def_n_proc": "2",
            "OMP_NUM_THREADS": "1",
            # nnU-Net sets its own number of threads; those that wait must not block the workers
            "OMP_WAIT_POLICY": "PASSIVE",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            **environment,
        }

    @property
    def dataset(self) -> Path:
        return self.preprocessed / "Dataset004_Hippocampus"

    @property
    def test_images(self) -> Path:
        return self.raw / "Dataset004_Hippocampus" / "imagesTs"

    def fold(
        self, trainer: str, configuration: str, plans: str = "nnUNetPlans", fold: int | str = 0
    ) -> Path:
        name = f"{trainer}__{plans}__{configuration}"
        return self.results / "Dataset004_Hippocampus" / name / f"fold_{fold}"

    def run(self, *command: str, timeout: float = 900, fails: bool = False) -> str:
        """Run a command that is expected to succeed, or to fail; its output."""
        done = subprocess.run(
            command,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert (done.returncode != 0) == fails, f"{' '.join(command)}\n{done.stdout[-5000:]}"
        return done.stdout

    def train(
        self, trainer: str, configuration: str = "2d", *flags: str, fold: int | str = 0, **options
    ) -> str:
        return self.run(*train_command(trainer, configuration, fold), *flags, **options)

    def interrupt_training(
        self, trainer: str, configuration: str = "2d", timeout: float = 600
    ) -> None:
        """Start a training and kill it and its workers in the middle of the second epoch."""
        command = train_command(trainer, configuration, 0)
        process = subprocess.Popen(
            command,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        checkpoint = self.fold(trainer, configuration) / "checkpoint_best.pth"
        end = time.monotonic() + timeout
        try:
            while not checkpoint.exists() and process.poll() is None and time.monotonic() < end:
                time.sleep(0.2)
            time.sleep(1)
            assert process.poll() is None, "the training ended before it could be interrupted"
            assert checkpoint.exists()
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def prepare(self, source: Path, scenario: str, configurations: list[str]) -> None:
        """Write the raw data set of a label scenario, plan and preprocess it for small networks."""
        self._write_raw(source / "Dataset004_Hippocampus", scenario)
        plan = ["nnUNetv2_plan_and_preprocess", "-d", str(DATASET_ID), "-np", "2"]
        self.run(*plan, "-npfp", "2", "--no_pp", "--verify_dataset_integrity")
        plans_file = self.dataset / "nnUNetPlans.json"
        plans = json.loads(plans_file.read_text())
        shrink(plans["configurations"])
        add_cascade(plans["configurations"])
        plans_file.write_text(json.dumps(plans))
        self.run("nnUNetv2_preprocess", "-d", str(DATASET_ID), "-np", "2", "-c", *configurations)

    def _write_raw(self, source: Path, scenario: str) -> None:
        target = self.raw / source.name
        for folder in ("imagesTr", "labelsTr", "imagesTs"):
            (target / folder).mkdir(parents=True)
        labels = SCENARIOS[scenario]
        cases = sorted((source / "labelsTr").glob("*.nii.gz"))
        for index, label_file in enumerate(cases[: CASES + 2]):
            image = label_file.name.replace(".nii.gz", "_0000.nii.gz")
            folder = "imagesTr" if index < CASES else "imagesTs"
            shutil.copy(source / "imagesTr" / image, target / folder / image)
            if index < CASES:
                write_labels(
                    label_file, target / "labelsTr" / label_file.name, labels.get("ignore"), index
                )
        dataset = {
            "channel_names": {"0": "MRI"},
            "labels": labels,
            "numTraining": CASES,
            "file_ending": ".nii.gz",
        }
        if "regions" in scenario:
            dataset["regions_class_order"] = [2, 1]
        (target / "dataset.json").write_text(json.dumps(dataset))


def train_command(trainer: str, configuration: str, fold: int | str) -> list[str]:
    words = f"nnUNetv2_train {DATASET_ID} {configuration} {fold} -tr {trainer} -device cpu"
    return words.split()


def write_labels(source: Path, target: Path, ignore_label: int | None, seed: int) -> None:
    """Copy a label image; with an ignore label only some slices stay annotated."""
    image = sitk.ReadImage(str(source))
    labels = sitk.GetArrayFromImage(image)
    if ignore_label is not None:
        generator = np.random.default_rng(seed)
        sparse = np.full_like(labels, ignore_label)
        for axis, length in enumerate(labels.shape):
            chosen = (slice(None),) * axis + (
                generator.choice(length, max(1, length // 5), replace=False),
            )
            sparse[chosen] = labels[chosen]
        labels = sparse
    result = sitk.GetImageFromArray(labels)
    result.CopyInformation(image)
    sitk.WriteImage(result, str(target))


def shrink(configurations: dict) -> None:
    """Few features, small batches: nnU-Net's own way to set them is its plans file."""
    for configuration in configurations.values():
        arguments = configuration["architecture"]["arch_kwargs"]
        arguments["features_per_stage"] = [min(8 * 2**i, 16) for i in range(arguments["n_stages"])]
        configuration["batch_size"] = min(configuration["batch_size"], 4)


def add_cascade(configurations: dict) -> None:
    """The data set is too small for nnU-Net to plan a cascade."""
    full = configurations["3d_fullres"]
    arguments = full["architecture"]["arch_kwargs"] | {
        "n_stages": 3,
        "features_per_stage": [8, 16, 16],
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "kernel_sizes": [[3, 3, 3]] * 3,
        "n_conv_per_stage": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
    }
    configurations["3d_lowres"] = {
        "inherits_from": "3d_fullres",
        "data_identifier": "nnUNetPlans_3d_lowres",
        "patch_size": [20, 28, 20],
        "median_image_size_in_voxels": [18.0, 25.0, 18.0],
        "spacing": [2.0, 2.0, 2.0],
        "architecture": full["architecture"] | {"arch_kwargs": arguments},
        "next_stage": "3d_cascade_fullres",
    }
    configurations["3d_cascade_fullres"] = {
        "inherits_from": "3d_fullres",
        "previous_stage": "3d_lowres",
    }
