"""The demo: its arguments, the jobs that it hands to sweep, and what it shows of compare."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from nnunet_unifiedloss.demo import phantom, run
from nnunet_unifiedloss.results.trainings import FOLDERS
from nnunet_unifiedloss.sweep import Job, Preparation, Status, TrainingJob, look
from tests.helpers.results_folder import ResultsFolder

NETWORK = {
    "n_stages": 4,
    "features_per_stage": [32, 64, 128, 256],
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
}
PLANS = {
    "configurations": {
        "3d_fullres": {
            "data_identifier": "nnUNetPlans_3d_fullres",
            "architecture": {"arch_kwargs": NETWORK},
        }
    }
}
BASELINE = "nnUNetTrainer_5epochs"
OURS = "nnUNetTrainerUnifiedFocal_5epochs"
CASES = ["phantom_000", "phantom_001", "phantom_003"]


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=80)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# --- arguments


def test_baselines_are_sorted_by_epochs():
    baselines = run.baseline_trainers()
    assert baselines[1] == "nnUNetTrainer_1epoch"
    assert baselines[5] == "nnUNetTrainer_5epochs"
    assert list(baselines) == sorted(baselines)


@pytest.mark.slow
def test_baselines_are_nnunets_own_trainers():
    from nnunetv2.training.nnUNetTrainer.variants.training_length import nnUNetTrainer_Xepochs

    baselines = run.baseline_trainers()
    assert all(hasattr(nnUNetTrainer_Xepochs, name) for name in baselines.values())


@pytest.mark.parametrize("epochs", [0, -5, 3])
def test_epochs_without_a_baseline_are_refused(tmp_path, console, epochs):
    with pytest.raises(ValueError, match=rf"epochs is {epochs}, .* 1, 5, 10, .*; choose one"):
        run.run_demo(tmp_path / "demo", epochs=epochs, console=console)
    assert not (tmp_path / "demo").exists()


def test_absent_gpu_is_refused(tmp_path, console, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device; use cpu instead"):
        run.run_demo(tmp_path / "demo", device="cuda", console=console)
    assert not (tmp_path / "demo").exists()


def test_folders_of_others_are_refused_and_left_alone(tmp_path, console):
    (tmp_path / "thesis.tex").write_text("final")
    with pytest.raises(ValueError, match="is not empty and not from an earlier demo"):
        run.run_demo(tmp_path, console=console)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_files_are_refused_as_folder(tmp_path, console):
    (tmp_path / "demo").write_text("")
    with pytest.raises(ValueError, match=r"demo cannot be used \(File exists\)"):
        run.run_demo(tmp_path / "demo", console=console)


def test_demos_of_other_versions_are_refused(tmp_path, console):
    (tmp_path / run.MARKER).write_text('{"format": 0}\n')
    with pytest.raises(ValueError, match="another version of nnunet-unifiedloss"):
        run.run_demo(tmp_path, console=console)


# --- the jobs, with a stand-in for sweep's processes


class FakeSweep:
    """Carries out jobs in place of LocalSweep: it writes what nnU-Net's commands leave."""

    def __init__(self, folder: Path) -> None:
        self.made = ResultsFolder(folder, {}, phantom.DATASET_NAME, (1.0, 1.0, 1.0))
        self.commands: list[str] = []
        self.fails = ""
        self.stops = ""

    def __call__(self, jobs: Sequence[Job], **_: object) -> FakeSweep:
        self.jobs = jobs
        return self

    def run(self) -> list[Status]:
        return [self.carry_out(job) for job in self.jobs]

    def carry_out(self, job: Job) -> Status:
        if not job.is_done():
            self.commands.append(shlex.join(job.command()))
            if self.fails and self.fails in job.name:
                return Status(job, "failed", error="no space left", log=Path("attempt_001.log"))
            if isinstance(job, Preparation):
                self.prepare()
            if isinstance(job, TrainingJob):
                self.train(job.training.trainer)
        return look(job, now=0.0)

    def prepare(self) -> None:
        folder = self.made.path("nnUNet_preprocessed")
        (folder / "nnUNetPlans.json").write_text(json.dumps(PLANS))
        dataset = self.made.path("nnUNet_raw")
        self.made.labels = json.loads((dataset / "dataset.json").read_text())["labels"]
        (folder / "dataset.json").write_text((dataset / "dataset.json").read_text())
        (folder / "nnUNetPlans_3d_fullres").mkdir()
        shutil.copytree(dataset / "labelsTr", folder / "gt_segmentations")
        for path in (dataset / "labelsTr").iterdir():
            name = path.name.removesuffix(".nii.gz")
            (folder / "nnUNetPlans_3d_fullres" / f"{name}.pkl").touch()
        splits = [{"train": [], "val": CASES}]
        (folder / "splits_final.json").write_text(json.dumps(splits))

    def train(self, trainer: str) -> None:
        if trainer == self.stops:
            raise KeyboardInterrupt
        steps = 0 if "UnifiedFocal" in trainer else 1
        self.made.add_training(
            trainer, CASES, lambda labels, _: np.roll(labels, steps, -1), 0, run.CONFIGURATION
        )


@pytest.fixture
def fake(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSweep:
    folder = tmp_path / "demo"
    fake = FakeSweep(folder)
    monkeypatch.setattr(run, "LocalSweep", fake)
    monkeypatch.setattr(run, "write_report", lambda _, folder, command: folder / "report.html")
    for name in FOLDERS:
        monkeypatch.delenv(name, raising=False)
    folder.mkdir()
    (folder / run.MARKER).write_text(run.MARKER_TEXT)
    shutil.copytree(dataset, folder / "nnUNet_raw" / phantom.DATASET_NAME)
    return fake


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "draw_predictions", lambda *_: None)


def test_demo_shows_sweep_and_compare(fake, console):
    folder = fake.made.root
    comparison = run.run_demo(folder, console=console)
    text = printed(console)
    prepare, *trainings = fake.commands
    assert prepare.startswith("nnUNetv2_plan_and_preprocess -d 900 -c 3d_fullres")
    assert trainings == [
        f"nnUNetv2_train {phantom.DATASET_NAME} 3d_demo 0 -tr {trainer} -device cpu"
        for trainer in (BASELINE, OURS)
    ]
    matrix = f"-d 900 -c 3d_demo -tr {BASELINE} {OURS} -f 0"
    lines = text.splitlines()
    assert f"nnunet-unifiedloss sweep {matrix} -device cpu" in lines
    assert f"nnunet-unifiedloss compare {matrix} -o {folder / 'report'}" in lines
    assert f'export nnUNet_raw="{folder / "nnUNet_raw"}"' in lines
    assert "nnUNet_raw" not in os.environ

    start = lines.index("mean Dice of the 3 validation cases of fold 0")
    table = [line.split() for line in lines[start + 1 : start + 6]]
    assert table[0] == [BASELINE, OURS]
    assert [row[0] for row in table[1:]] == [*phantom.REGIONS, "foreground"]
    for row in table[1:]:
        assert 0 < float(row[-2]) < float(row[-1]) == 1
    assert max(map(len, lines[start : start + 6])) <= 80
    assert comparison.methods[0] == OURS
    assert "(3 cases)" in text

    assert f"report: {folder / 'report' / 'report.html'}" in lines
    pixels = imread(folder / "demo.png")
    assert pixels.shape[1] == 1600
    colourful = np.ptp(pixels[..., :3], axis=-1) > 0.1
    panels = np.split(colourful[: len(pixels) // 2 + 50], 4, axis=1)
    assert [panel.any() for panel in panels] == [False, True, True, True]


def test_demo_adds_a_small_configuration_to_the_plans(fake, console, no_picture):
    run.run_demo(fake.made.root, console=console)
    path = fake.made.path("nnUNet_preprocessed") / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    small = plans["configurations"].pop("3d_demo")
    assert plans == PLANS
    assert small["inherits_from"] == "3d_fullres"
    assert "data_identifier" not in small
    network = small["architecture"]["arch_kwargs"]
    assert network["norm_op"] == NETWORK["norm_op"]
    downsampling = np.prod(network["strides"], axis=0)
    assert not (np.array(small["patch_size"]) % downsampling).any()
    assert f"{path}: inherits from 3d_fullres" in printed(console)


def test_interrupted_demo_continues_and_a_finished_one_repeats_nothing(fake, console, no_picture):
    fake.stops = OURS
    with pytest.raises(KeyboardInterrupt):
        run.run_demo(fake.made.root, console=console)
    assert "nnUNet_raw" not in os.environ
    fake.stops = ""
    fake.commands.clear()
    run.run_demo(fake.made.root, console=console)
    assert fake.commands == [
        f"nnUNetv2_train {phantom.DATASET_NAME} 3d_demo 0 -tr {OURS} -device cpu"
    ]
    fake.commands.clear()
    run.run_demo(fake.made.root, console=console)
    assert fake.commands == []
    run.run_demo(fake.made.root, epochs=1, console=console)  # beside the others
    assert len(fake.commands) == 2


@pytest.mark.parametrize("content", [json.dumps(PLANS), '{"configurations": {"3d_'])
def test_preprocessing_that_was_cut_off_is_repeated(fake, console, no_picture, content):
    folder = fake.made.path("nnUNet_preprocessed")
    (folder / "nnUNetPlans.json").write_text(content)
    (folder / "dataset_fingerprint.json").write_text("{")
    run.run_demo(fake.made.root, console=console)
    assert fake.commands[0].startswith("nnUNetv2_plan_and_preprocess -d 900")
    assert not (folder / "dataset_fingerprint.json").exists()


def test_a_failure_names_the_job_the_error_and_the_log(fake, console):
    fake.fails = OURS
    with pytest.raises(RuntimeError) as caught:
        run.run_demo(fake.made.root, console=console)
    first, *others = str(caught.value).splitlines()
    assert first.startswith(f"failed: {phantom.DATASET_NAME} {OURS}__")
    assert first.endswith(": no space left")
    assert others == [
        "  log: attempt_001.log",
        "remedy: fix the cause and run the demo again, which continues from here",
    ]


@pytest.mark.slow
def test_demo_from_end_to_end(tmp_path):
    folder = tmp_path / "folder with a space"
    command = [sys.executable, "-m", "nnunet_unifiedloss", "demo", "-o", str(folder)]
    command += ["--epochs", "1", "-device", "cpu"]
    first = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.count("started: ") == 3
    assert "mean Dice of the 3 validation cases" in first.stdout
    assert (folder / "demo.png").is_file()
    assert (folder / "report" / "report.html").is_file()
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "started: " not in again.stdout
