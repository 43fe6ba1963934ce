"""The guided run: nnU-Net's own commands on a phantom, with its own trainer and with ours."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console

from nnunet_unifiedloss.demo.commands import run_command, say
from nnunet_unifiedloss.demo.phantom import (
    DATASET_NAME,
    read_array,
    read_cases,
    write_phantom_dataset,
)
from nnunet_unifiedloss.demo.result import as_rich_table, dice_table, draw_predictions
from nnunet_unifiedloss.demo.steps import (
    Step,
    plan_step,
    prediction_folder,
    prediction_step,
    training_step,
)
from nnunet_unifiedloss.training import install
from nnunet_unifiedloss.training.probe import DEVICES

__all__ = ["DemoResult", "baseline_trainers", "run_demo"]

MARKER = "unifiedloss_demo.json"
# Raised when phantom or configuration change: results of both must not meet in one folder.
MARKER_TEXT = json.dumps({"format": 1}) + "\n"


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        dice: mean Dice over the test cases, one row per region and class, one column per trainer.
        picture: PNG of a slice with its reference and both predictions.
    """

    dice: pd.DataFrame
    picture: Path


def run_demo(folder: Path, *, epochs: int = 5, device: str = "cpu", console: Console) -> DemoResult:
    """Train nnU-Net's own trainer and Unified Focal on the phantom, and compare them.

    Steps whose results are complete are skipped, and an interrupted training is continued, so that
    calling again with the same folder resumes.

    Args:
        folder: where everything goes; absent, empty or of an earlier demo.
        epochs: length of both trainings; one of `baseline_trainers()`.
        device: `cpu`, `cuda` or `mps`.
        console: where commands, progress and the closing table go.

    Returns:
        The table of Dice and the picture.

    Raises:
        ValueError: if an argument cannot be used.
        RuntimeError: if nnU-Net's commands are not installed, or one of them fails.
    """
    trainers = (_baseline_trainer(epochs), f"nnUNetTrainerUnifiedFocal_{epochs}epochs")
    _check_device(device)
    folder = _claim_folder(folder)
    start = time.monotonic()
    settings = _settings(folder)
    say(console, f"Phantom data set: {write_phantom_dataset(folder / 'nnUNet_raw')}")
    for name, value in settings.items():
        shown = (
            '"$(nnunet-unifiedloss path)"' if name == "nnUNet_extTrainer" else shlex.quote(value)
        )
        say(console, f"export {name}={shown}", style="bold")
    steps = [plan_step(folder, console)]
    steps += [training_step(folder, trainer, epochs, device) for trainer in trainers]
    steps += [prediction_step(folder, trainer, device) for trainer in trainers]
    for number, step in enumerate(steps, 1):
        _carry_out(step, f"Step {number} of {len(steps)}: {step.title}", settings, console)
    result = _compare(folder, trainers)
    console.print(as_rich_table(result.dice))
    say(
        console,
        "So few cases and so short a training show how it is done, not which loss is better: "
        "repeat with more epochs, and compare on your own data.",
    )
    say(console, f"Picture: {result.picture}")
    say(console, f"Total time: {_clock(time.monotonic() - start)}")
    return result


def baseline_trainers() -> dict[int, str]:
    """nnU-Net's own trainers of shorter length, by their number of epochs.

    They are read from its source, as importing nnU-Net takes seconds.
    """
    specification = importlib.util.find_spec("nnunetv2")
    if specification is None or not specification.submodule_search_locations:
        raise RuntimeError("nnU-Net is not installed; remedy: pip install nnunetv2")
    package = Path(specification.submodule_search_locations[0])
    folder = package / "training" / "nnUNetTrainer" / "variants" / "training_length"
    source = "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))
    names = re.finditer(r"^class (nnUNetTrainer_(\d+)epochs?)\(", source, re.MULTILINE)
    return dict(sorted((int(match[2]), match[1]) for match in names))


def _baseline_trainer(epochs: int) -> str:
    available = baseline_trainers()
    if epochs not in available:
        raise ValueError(
            f"epochs is {epochs}, but the demo compares with nnU-Net's own trainer, which comes "
            f"with these numbers only: {', '.join(map(str, available))}; choose one of them"
        )
    return available[epochs]


def _check_device(device: str) -> None:
    if device not in DEVICES:
        raise ValueError(f"device is {device!r}, but must be one of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but PyTorch finds no CUDA device; use cpu instead")
    if device == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device is 'mps', but PyTorch finds no Apple GPU; use cpu instead")


def _claim_folder(folder: Path) -> Path:
    """Create the folder with the demo's marker, or recognise it by the marker."""
    folder = folder.expanduser().resolve()
    marker = folder / MARKER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            marker.write_text(MARKER_TEXT)
        content = marker.read_text() if marker.is_file() else None
    except OSError as error:
        raise ValueError(
            f"folder {folder} cannot be used ({error.strerror}); choose a folder you can write to"
        ) from error
    if content is None:
        raise ValueError(
            f"folder {folder} is not empty and not from an earlier demo; choose a new or empty one"
        )
    if content != MARKER_TEXT:
        raise ValueError(
            f"folder {folder} is from the demo of another version of nnunet-unifiedloss; "
            "delete it or choose another one"
        )
    return folder


def _settings(folder: Path) -> dict[str, str]:
    """Environment variables of all commands: two cores are kept busy, and no more."""
    return {
        "nnUNet_raw": str(folder / "nnUNet_raw"),
        "nnUNet_preprocessed": str(folder / "nnUNet_preprocessed"),
        "nnUNet_results": str(folder / "nnUNet_results"),
        "nnUNet_extTrainer": str(install.trainers_folder()),
        "nnUNet_n_proc_DA": "2",
        "nnUNet_def_n_proc": "1",
        # Compiling takes longer than a network this small can save by it.
        "nnUNet_compile": "f",
        # For the workers only: on a CPU, nnU-Net's main process sets its own number of threads.
        "OMP_NUM_THREADS": "1",
        # Threads that wait for others would otherwise take the core that these others need.
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def _carry_out(step: Step, title: str, settings: dict[str, str], console: Console) -> None:
    if step.is_complete():
        say(console, f"{title}: done before, skipped", style="green")
        return
    command = step.command()
    say(console, title, style="cyan")
    say(console, shlex.join(command), style="bold")
    start = time.monotonic()
    run_command(
        command, step.log, settings=settings, title=title, epochs=step.epochs, console=console
    )
    step.finish()
    if not step.is_complete():
        raise RuntimeError(
            f"{shlex.join(command)}\nended without its results; its output is in {step.log}"
        )
    say(console, f"{title}: done in {_clock(time.monotonic() - start)}", style="green")


def _compare(folder: Path, trainers: tuple[str, str]) -> DemoResult:
    cases = read_cases(folder / "nnUNet_raw" / DATASET_NAME, "Ts")
    predictions = {
        trainer: {name: read_array(prediction_folder(folder, trainer) / name) for name in cases}
        for trainer in trainers
    }
    picture = folder / "demo.png"
    draw_predictions(cases, predictions, picture)
    return DemoResult(dice_table(cases, predictions), picture)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
