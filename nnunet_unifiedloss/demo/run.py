"""The demo: a phantom data set, two trainers through ``sweep``, the result through ``compare``."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from nnunet_unifiedloss._support.files import write_atomically
from nnunet_unifiedloss.compare.comparison import Comparison, compare
from nnunet_unifiedloss.compare.report import write_report
from nnunet_unifiedloss.compare.verdict import verdict
from nnunet_unifiedloss.demo.phantom import DATASET_ID, DATASET_NAME, REGIONS, write_phantom_dataset
from nnunet_unifiedloss.demo.picture import draw_predictions
from nnunet_unifiedloss.results.plans import nnunet_source
from nnunet_unifiedloss.results.trainings import DEFAULT_PLANS, FOLDERS, Training, read_json
from nnunet_unifiedloss.sweep import Job, Preparation, Status, plan_jobs
from nnunet_unifiedloss.sweep.display import Display
from nnunet_unifiedloss.sweep.jobs import plans_of
from nnunet_unifiedloss.sweep.local import LocalSweep
from nnunet_unifiedloss.sweep.tables import remarks
from nnunet_unifiedloss.training import install

CONFIGURATION = "3d_demo"
FOLD = "0"
MARKER = "unifiedloss_demo.json"
# The number changes with the phantom or the configuration: their results must not be mixed.
MARKER_TEXT = json.dumps({"format": 1}) + "\n"


def run_demo(folder: Path, *, epochs: int = 5, device: str = "cpu", console: Console) -> Comparison:
    """Train nnU-Net's own trainer and Unified Focal on the phantom, and compare them.

    Finished work is not repeated and an interrupted training is continued, so a second call with
    the same folder resumes the first.

    Args:
        folder: The folder for everything; absent, empty or from an earlier demo.
        epochs: Length of both trainings; one of :func:`baseline_trainers`.
        device: ``cpu``, ``cuda`` or ``mps``.
        console: Where commands, progress and results are printed.

    Returns:
        The comparison on the validation cases of fold 0.

    Raises:
        ValueError: An argument cannot be used.
        RuntimeError: nnU-Net is not installed, or one of its commands fails.
    """
    trainers = _trainers(epochs)
    _check_device(device)
    folder = _claim_folder(folder)
    start = time.monotonic()
    settings = _settings(folder)
    for name, value in settings.items():
        console.print(install.export_line(name, value), soft_wrap=True)
    with _environment(settings):
        dataset = write_phantom_dataset(folder / "nnUNet_raw")
        console.print(f"phantom data set: {dataset}", soft_wrap=True)
        _prepare(console)
        _train(trainers, device, console)
        comparison, page = _compare(trainers, folder / "report", console)
        picture = folder / "demo.png"
        draw_predictions(comparison, dataset, _validations(folder, trainers), picture)
    minutes, seconds = divmod(int(time.monotonic() - start), 60)
    for text in (
        dice_table(comparison, trainers),
        verdict(comparison),
        "So few cases and so short a training show how it is done, not which loss is better: "
        "repeat with more epochs, and compare on your own data.",
        f"report: {page}",
        f"picture: {picture}",
        f"time: {minutes}:{seconds:02d} min",
    ):
        console.print(text, soft_wrap=True)
    return comparison


def baseline_trainers() -> dict[int, str]:
    """Return nnU-Net's own shorter trainers by their number of epochs, read from its source."""
    folder = nnunet_source() / "training" / "nnUNetTrainer" / "variants" / "training_length"
    source = "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))
    names = re.finditer(r"^class (nnUNetTrainer_(\d+)epochs?)\(", source, re.MULTILINE)
    return dict(sorted((int(match[2]), match[1]) for match in names))


def _trainers(epochs: int) -> tuple[str, str]:
    available = baseline_trainers()
    if epochs not in available:
        raise ValueError(
            f"epochs is {epochs}, but the demo compares with nnU-Net's own trainer, which comes "
            f"with these numbers only: {', '.join(map(str, available))}; choose one of them"
        )
    return available[epochs], f"nnUNetTrainerUnifiedFocal_{epochs}epochs"


def _check_device(device: str) -> None:
    if device == "cpu":
        return
    import torch  # only here, because the import takes seconds

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
        for name in FOLDERS if content == MARKER_TEXT else ():
            (folder / name).mkdir(exist_ok=True)
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
    """Return the environment variables of all commands, which keep two cores busy."""
    return {
        **{name: str(folder / name) for name in FOLDERS},
        install.VARIABLE: str(install.trainers_folder()),
        "nnUNet_n_proc_DA": "2",
        "nnUNet_def_n_proc": "1",
        # compiling takes longer than a network this small can save by it
        "nnUNet_compile": "f",
        # for the workers only: on a CPU, nnU-Net's main process sets its own number of threads
        "OMP_NUM_THREADS": "1",
        # otherwise waiting threads would occupy the core that the others need
        "OMP_WAIT_POLICY": "PASSIVE",
    }


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _prepare(console: Console) -> None:
    """Plan and preprocess, then add the small configuration that both trainers use.

    The configuration is added last, so it also marks that the preparation is complete.
    """
    plans = plans_of(DATASET_NAME, DEFAULT_PLANS)
    with contextlib.suppress(ValueError):  # the plans may have been cut off
        if CONFIGURATION in plans.configurations:
            return
    # nnU-Net would reuse a fingerprint that was cut off
    shutil.rmtree(plans.folder, ignore_errors=True)
    _run([Preparation(DATASET_NAME, DEFAULT_PLANS, ("3d_fullres",))], console)
    content = read_json(plans.file)
    small = _small_configuration(content["configurations"]["3d_fullres"])
    content["configurations"][CONFIGURATION] = small
    write_atomically(plans.file, json.dumps(content, indent=4))
    text = f"added {CONFIGURATION} to {plans.file}: inherits from 3d_fullres, with patch size "
    text += f"{small['patch_size']} and a small network, which a CPU trains in minutes"
    console.print(text, soft_wrap=True)


def _small_configuration(planned: dict[str, Any]) -> dict[str, Any]:
    """Return a small relative of the planned configuration, on the same preprocessed data."""
    features = [16, 16, 32]
    stages = len(features)
    network = {
        "n_stages": stages,
        "features_per_stage": features,
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "n_conv_per_stage": [1] * stages,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
    }
    architecture = planned["architecture"]
    return {
        "inherits_from": "3d_fullres",
        "patch_size": [24, 28, 20],
        "batch_size": 2,
        "architecture": {**architecture, "arch_kwargs": {**architecture["arch_kwargs"], **network}},
    }


def _train(trainers: Sequence[str], device: str, console: Console) -> None:
    _say_command(console, "sweep", trainers, "-device", device)
    flags = ["-device", device]
    jobs = plan_jobs([DATASET_NAME], [CONFIGURATION], trainers, [FOLD], flags=flags)
    Display(console).results(_run(jobs, console))


def _compare(trainers: Sequence[str], report: Path, console: Console) -> tuple[Comparison, Path]:
    command = _say_command(console, "compare", trainers, "-o", str(report))
    comparison = compare([DATASET_NAME], [CONFIGURATION], trainers=trainers, folds=[FOLD])
    return comparison, write_report(comparison, report, command=command)


def _say_command(console: Console, name: str, trainers: Sequence[str], *flags: str) -> str:
    """Print the command that does the same, so that it can be copied."""
    matrix = ["-d", str(DATASET_ID), "-c", CONFIGURATION, "-tr", *trainers, "-f", FOLD]
    command = shlex.join(["nnunet-unifiedloss", name, *matrix, *flags])
    console.print(command, soft_wrap=True, style="bold")
    return command


def _run(jobs: Sequence[Job], console: Console) -> list[Status]:
    """Run jobs as ``sweep`` does, one at a time."""
    statuses = LocalSweep(jobs, gpus=[], parallel=1, display=Display(console)).run()
    if any(status.state != "done" for status in statuses):
        remedy = "fix the cause and run the demo again, which continues from here"
        raise RuntimeError("\n".join([*remarks(statuses), f"remedy: {remedy}"]))
    return statuses


def _validations(folder: Path, trainers: Sequence[str]) -> list[Path]:
    trainings = [
        Training(DATASET_NAME, CONFIGURATION, DEFAULT_PLANS, trainer, FOLD) for trainer in trainers
    ]
    return [each.folder(folder / "nnUNet_results") / "validation" for each in trainings]


def dice_table(comparison: Comparison, trainers: Sequence[str]) -> str:
    """Return the mean Dice of each region as text, for a terminal of 80 columns."""
    dice = comparison.summary[comparison.summary["metric"] == "Dice"]
    table = dice.pivot(index="label", columns="method", values="mean")
    table = table.loc[[*REGIONS, comparison.main_label], list(trainers)]
    table = table.rename_axis(index=None, columns=None)
    heading = f"mean Dice of the {dice['cases'].max()} validation cases of fold {FOLD}"
    return f"{heading}\n{table.to_string(float_format='{:.3f}'.format)}"
