"""A training that behaves on disk as nnU-Net's, in a second, and a sweep of such trainings.

As a program it is either of both: ``fake_nnunet.py train …`` takes nnUNetv2_train's arguments,
``fake_nnunet.py sweep TRAINER,… FOLD,… PARALLEL`` runs a sweep that can be killed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
import zipfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

DATASET = "Dataset004_Hippocampus"
EPOCHS = 6
FILE = Path(__file__)


def make_folders(folder: Path, cases: int = 10) -> dict[str, str]:
    """nnU-Net's folders with a data set that is preprocessed for 2d and 3d_fullres."""
    paths = {
        name: folder / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    }
    for path in paths.values():
        path.mkdir(parents=True)
    (paths["nnUNet_raw"] / DATASET).mkdir()
    preprocessed = paths["nnUNet_preprocessed"] / DATASET
    names = [f"case_{number}" for number in range(cases)]
    folds = [{"train": names, "val": names[fold::5]} for fold in range(5)]
    plans = {
        "configurations": {
            "2d": {"data_identifier": "nnUNetPlans_2d"},
            "2d_small": {"inherits_from": "2d"},
            "3d_fullres": {"data_identifier": "nnUNetPlans_3d_fullres"},
        }
    }
    for name in ("gt_segmentations", "nnUNetPlans_2d", "nnUNetPlans_3d_fullres"):
        (preprocessed / name).mkdir(parents=True)
    for name in names:
        (preprocessed / "gt_segmentations" / f"{name}.nii.gz").touch()
        (preprocessed / "nnUNetPlans_2d" / f"{name}.pkl").touch()
        (preprocessed / "nnUNetPlans_3d_fullres" / f"{name}.pkl").touch()
    (preprocessed / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz"}))
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    (preprocessed / "splits_final.json").write_text(json.dumps(folds))
    return {name: str(path) for name, path in paths.items()}


def finish(folder: Path, dice: float = 0.8) -> None:
    """Write the files that nnU-Net leaves at the end of a training."""
    write_checkpoint(folder / "checkpoint_final.pth", EPOCHS)
    (folder / "validation").mkdir(exist_ok=True)
    summary = {"foreground_mean": {"Dice": dice}, "mean": {}, "metric_per_case": []}
    (folder / "validation" / "summary.json").write_text(json.dumps(summary))


def write_checkpoint(path: Path, epoch: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("epoch", str(epoch))


def read_checkpoint(path: Path) -> int:
    with zipfile.ZipFile(path) as archive:
        return int(archive.read("epoch"))


def train(arguments: list[str]) -> None:
    """Train and validate one fold."""
    dataset, configuration, fold = arguments[:3]
    trainer = arguments[arguments.index("-tr") + 1]
    model = f"{trainer}__nnUNetPlans__{configuration}"
    results = Path(os.environ["nnUNet_results"])
    folder = results / dataset / model / f"fold_{fold}"
    folder.mkdir(parents=True, exist_ok=True)
    if "Raises" in trainer:
        raise ArithmeticError("this trainer raises")
    (folder / "debug.json").write_text(json.dumps({"num_epochs": str(EPOCHS)}))
    # two at once would spoil each other's results; here the second one fails and is seen
    taken = folder / "in_use"
    if taken.exists() and Path(f"/proc/{taken.read_text()}").exists():
        raise RuntimeError("this training is running already")
    taken.write_text(str(os.getpid()))
    with (folder / f"training_log_{datetime.now():%Y_%m_%d_%H_%M_%S_%f}.txt").open("w") as log:

        def say(text: str) -> None:
            print(f"{datetime.now()}: {text} ", file=log, flush=True)

        say(f"GPU {os.environ.get('CUDA_VISIBLE_DEVICES')}")
        resumed = "--c" in arguments or "--val" in arguments
        latest = folder / f"checkpoint_{'final' if '--val' in arguments else 'latest'}.pth"
        for epoch in range(read_checkpoint(latest) if resumed else 0, EPOCHS):
            say(f"Epoch {epoch}")
            time.sleep(float(os.environ.get("FAKE_SECONDS", "0.02")))
            say(f"Pseudo dice [np.float32({epoch / 10}), np.float32(nan)]")
            say("Epoch time: 0.1 s")
            write_checkpoint(latest, epoch + 1)
        say("Training done.")
    finish(folder)
    taken.unlink()


def epochs_trained(folder: Path) -> list[int]:
    """The epochs in a training's logs, in the order in which they were trained."""
    text = "".join(path.read_text() for path in sorted(folder.glob("training_log_*.txt")))
    return [int(line.split()[-1]) for line in text.splitlines() if re.search(r": Epoch \d", line)]


def prepare(arguments: list[str]) -> None:
    """Preprocess the missing cases."""
    data = Path(arguments[0])
    if "FAKE_PREPARATION_FAILS" in os.environ:
        raise OSError("no space left on device")
    for path in (data.parent / "gt_segmentations").iterdir():
        (data / path.name.replace(".nii.gz", ".pkl")).touch()


if __name__ == "__main__" and sys.argv[1] in ("train", "prepare"):
    {"train": train, "prepare": prepare}[sys.argv[1]](sys.argv[2:])
    raise SystemExit

from nnunet_unifiedloss.sweep import Job, Preparation, TrainingJob, plan_jobs  # noqa: E402


@dataclass(frozen=True)
class FakeTraining(TrainingJob):
    """A training by the program above."""

    def command(self) -> list[str]:
        return ["python", str(FILE), "train", *super().command()[1:]]


@dataclass(frozen=True)
class FakePreparation(Preparation):
    """A preparation by the program above."""

    def command(self) -> list[str]:
        return ["python", str(FILE), "prepare", str(self.plans.data_folder("2d"))]


def jobs(trainers: list[str], folds: list[str], configurations: tuple[str, ...] = ("2d",)):
    """The jobs of a sweep of fake trainings."""
    made: dict[str, Job] = {}
    for job in plan_jobs([DATASET], configurations, trainers, folds):
        requires = tuple(made[before.name] for before in job.requires)
        if isinstance(job, TrainingJob):
            made[job.name] = FakeTraining(job.training, requires, job.flags, job.next_stages)
        elif isinstance(job, Preparation):
            made[job.name] = FakePreparation(job.dataset, job.plans_identifier, job.configurations)
    return list(made.values())


def look_often() -> None:
    """Fake trainings are over in a second: do not wait for as long before the next look."""
    from nnunet_unifiedloss.sweep import local

    local.SECONDS_BETWEEN_LOOKS = 0.05
    local.SECONDS_BETWEEN_LOOKS_ELSEWHERE = 0.5


def sweep(trainers: str, folds: str, parallel: str) -> int:
    from rich.console import Console

    from nnunet_unifiedloss.sweep.display import Display
    from nnunet_unifiedloss.sweep.local import LocalSweep

    look_often()
    display = Display(Console(width=300))
    all_jobs = jobs(trainers.split(","), folds.split(","))
    statuses = LocalSweep(all_jobs, [], int(parallel), display).run()
    return 0 if all(status.state == "done" for status in statuses) else 1


if __name__ == "__main__":
    from tests.helpers import fake_nnunet  # whose classes other processes can unpickle

    signal.signal(signal.SIGINT, signal.default_int_handler)
    raise SystemExit(fake_nnunet.sweep(*sys.argv[2:]))
