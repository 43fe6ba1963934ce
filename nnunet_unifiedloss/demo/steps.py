"""The demo's steps: which of nnU-Net's commands, whether they are due, and how they go on."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from nnunet_unifiedloss._support.files import write_atomically
from nnunet_unifiedloss.demo.commands import say
from nnunet_unifiedloss.demo.phantom import DATASET_ID, DATASET_NAME, FILE_ENDING
from nnunet_unifiedloss.results.trainings import resume_flags, set_broken_checkpoints_aside

__all__ = ["Step", "plan_step", "prediction_folder", "prediction_step", "training_step"]

CONFIGURATION = "3d_demo"
PLANS = "nnUNetPlans"


@dataclass(frozen=True)
class Step:
    """One nnU-Net command, which `command` gives when it is due: it depends on what is there.

    Attributes:
        title: what the user reads.
        log: file for the command's output.
        is_complete: whether the step's results are there, so that it can be skipped.
        command: name of the console script, and its arguments.
        finish: what remains to be done when the command has succeeded.
        epochs: number of epochs if the command trains.
    """

    title: str
    log: Path
    is_complete: Callable[[], bool]
    command: Callable[[], list[str]]
    finish: Callable[[], None] = lambda: None
    epochs: int | None = None


def plan_step(folder: Path, console: Console) -> Step:
    """Plan and preprocess, then add the small configuration that both trainers use."""
    preprocessed = folder / "nnUNet_preprocessed" / DATASET_NAME
    plans_file = preprocessed / f"{PLANS}.json"

    def is_complete() -> bool:
        # The configuration is added when preprocessing is done, so it also marks that it is done.
        try:
            return CONFIGURATION in _read_json(plans_file)["configurations"]
        except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
            return False

    def command() -> list[str]:
        # nnU-Net takes a fingerprint that exists for a good one, even if it was cut off.
        shutil.rmtree(preprocessed, ignore_errors=True)
        arguments = f"-d {DATASET_ID} -c 3d_fullres -npfp 2 -np 2 --verify_dataset_integrity"
        return ["nnUNetv2_plan_and_preprocess", *arguments.split()]

    def finish() -> None:
        plans = _read_json(plans_file)
        small = _small_configuration(plans)
        plans["configurations"][CONFIGURATION] = small
        _write_json(plans_file, plans)
        network = small["architecture"]["arch_kwargs"]
        say(
            console,
            f"Added a configuration {CONFIGURATION} to {plans_file}, as nnU-Net's documentation on "
            f"plans files describes: it inherits from 3d_fullres, with patch size "
            f"{small['patch_size']}, {network['features_per_stage']} features per stage and batch "
            f"size {small['batch_size']}, which a CPU trains in minutes.",
        )

    log = folder / "logs" / "plan_and_preprocess.log"
    return Step("plan and preprocess", log, is_complete, command, finish)


def _small_configuration(plans: dict[str, Any]) -> dict[str, Any]:
    """A small relative of the planned 3d_fullres, on the same preprocessed data."""
    features = [16, 16, 32]
    stages = len(features)
    architecture = dict(plans["configurations"]["3d_fullres"]["architecture"])
    architecture["arch_kwargs"] = {
        **architecture["arch_kwargs"],
        "n_stages": stages,
        "features_per_stage": features,
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "n_conv_per_stage": [1] * stages,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
    }
    return {
        "inherits_from": "3d_fullres",
        "patch_size": [24, 28, 20],
        "batch_size": 2,
        "architecture": architecture,
    }


def _training_folder(folder: Path, trainer: str) -> Path:
    model = f"{trainer}__{PLANS}__{CONFIGURATION}"
    return folder / "nnUNet_results" / DATASET_NAME / model / "fold_0"


def training_step(folder: Path, trainer: str, epochs: int, device: str) -> Step:
    """Train fold 0 and validate it, or go on where that was interrupted."""
    output = _training_folder(folder, trainer)

    def is_complete() -> bool:
        final, summary = output / "checkpoint_final.pth", output / "validation" / "summary.json"
        return final.is_file() and summary.is_file()

    def command() -> list[str]:
        set_broken_checkpoints_aside(output)
        arguments = f"{DATASET_ID} {CONFIGURATION} 0 -tr {trainer} -device {device}".split()
        return ["nnUNetv2_train", *arguments, *resume_flags(output)]

    log = folder / "logs" / f"train_{trainer}.log"
    return Step(f"train {trainer}", log, is_complete, command, epochs=epochs)


def prediction_step(folder: Path, trainer: str, device: str) -> Step:
    """Predict the test cases with the trained model."""
    images = folder / "nnUNet_raw" / DATASET_NAME / "imagesTs"
    output = prediction_folder(folder, trainer)
    model = _training_folder(folder, trainer) / "checkpoint_final.pth"

    def is_complete() -> bool:
        names = [path.name.replace("_0000.", ".") for path in images.glob(f"*{FILE_ENDING}")]
        return all(_is_whole_and_newer(output / name, model) for name in names)

    def command() -> list[str]:
        # On so few cores and small images, nnU-Net's worker processes cost more than they bring.
        arguments = f"-d {DATASET_ID} -c {CONFIGURATION} -tr {trainer} -f 0 -npp 0 -nps 0"
        paths = ["-i", str(images), "-o", str(output)]
        return ["nnUNetv2_predict", *paths, *arguments.split(), "-device", device]

    log = folder / "logs" / f"predict_{trainer}.log"
    return Step(f"predict the test cases with {trainer}", log, is_complete, command)


def prediction_folder(folder: Path, trainer: str) -> Path:
    """Where `prediction_step` puts its label maps."""
    return folder / "predictions" / trainer


def _is_whole_and_newer(prediction: Path, model: Path) -> bool:
    if not prediction.is_file() or prediction.stat().st_mtime < model.stat().st_mtime:
        return False
    try:
        with gzip.open(prediction) as file:
            file.read()
    except (EOFError, OSError):
        return False
    return True


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=4))
