"""A sweep of nnU-Net's own commands on real data, killed in the middle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from nnunet_unifiedloss.training import install
from tests.helpers.fake_nnunet import epochs_trained
from tests.helpers.nnunet_workspace import CASES, Workspace

pytestmark = pytest.mark.slow
FIRST = "nnUNetTrainerUnifiedFocal_3epochs_10iters"
SECOND = "nnUNetTrainerTversky_2epochs_2iters"
RAISES = "nnUNetTrainerRaises"
RAISING_TRAINER = f"""
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class {RAISES}(nnUNetTrainer):
    def initialize(self):
        raise ArithmeticError("this trainer raises")
"""


def add_raising_trainer(workspace: Workspace, folder: Path) -> None:
    """Add a trainer that nnU-Net finds, but that fails when it trains."""
    folder.mkdir()
    (folder / "raising_trainer.py").write_text(RAISING_TRAINER)
    folders = [workspace.environment[install.VARIABLE], str(folder)]
    workspace.environment[install.VARIABLE] = os.pathsep.join(folders)


def start(workspace: Workspace, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "nnunet_unifiedloss", "sweep", "-d", "4", "-device", "cpu"]
    return subprocess.Popen(
        [*command, *arguments],
        env=workspace.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def processes_of(workspace: Workspace) -> list[str]:
    """Return nnU-Net's processes in this workspace, workers included."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            if process.environ().get("nnUNet_results") == str(workspace.results):
                found.append(" ".join(process.info["cmdline"] or []))
        except psutil.Error:
            continue
    return found


def test_two_trainers_and_two_folds_killed_and_continued(test_data, tmp_path):
    workspace = Workspace(tmp_path)
    workspace.prepare(test_data, "plain", ["2d"])
    shutil.rmtree(workspace.dataset / "nnUNetPlans_2d")  # for the sweep to do
    add_raising_trainer(workspace, tmp_path / "raising")
    arguments = ("-c", "2d", "-tr", FIRST, SECOND, RAISES, "-f", "0", "1", "--npz")
    sweep = start(workspace, *arguments)
    finished, interrupted = (workspace.fold(FIRST, "2d", fold=fold) for fold in (0, 1))
    while not (interrupted / "checkpoint_best.pth").exists():
        assert sweep.poll() is None, sweep.communicate()[0]
        time.sleep(0.2)
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    end = time.monotonic() + 60
    while processes_of(workspace):
        assert time.monotonic() < end, processes_of(workspace)
        time.sleep(0.5)
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    assert json.loads((finished / "validation" / "summary.json").read_text())["metric_per_case"]
    output, _ = (sweep := start(workspace, *arguments)).communicate(timeout=1800)
    assert sweep.returncode == 1  # because of the one that raises
    assert "4 done, 2 failed" in output
    assert "ArithmeticError: this trainer raises" in output
    assert f"{FIRST} -device cpu --npz --c" in output
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert epochs_trained(interrupted) in ([0, 1, 2], [0, 1, 1, 2])  # not the first one again
    for trainer in (FIRST, SECOND):
        for fold in (0, 1):
            validation = workspace.fold(trainer, "2d", fold=fold) / "validation"
            summary = json.loads((validation / "summary.json").read_text())
            assert len(summary["metric_per_case"]) == CASES // 5
            assert len(list(validation.glob("*.npz"))) == CASES // 5


def test_a_cascade_from_its_last_stage(test_data, tmp_path):
    """One fold of the last stage needs preprocessing and all folds of the first stage."""
    workspace = Workspace(tmp_path)
    workspace.prepare(test_data, "plain", ["2d"])
    trainer = "nnUNetTrainerUnifiedFocal_1epochs_1iters"
    arguments = ("-c", "3d_cascade_fullres", "-tr", trainer, "-f", "0", "--jobs", "2")
    output, _ = (sweep := start(workspace, *arguments)).communicate(timeout=3000)
    assert sweep.returncode == 0, output
    assert "nnUNetv2_preprocess -d 4 -c 3d_lowres 3d_cascade_fullres -np 2" in output
    started = [line.split(" started: ")[1] for line in output.splitlines() if "started: " in line]
    assert [command.split()[2] for command in started[1:]] == [
        *["3d_lowres"] * 5,
        "3d_cascade_fullres",
    ]
    low = workspace.fold(trainer, "3d_lowres").parent
    assert len(list((low / "predicted_next_stage" / "3d_cascade_fullres").iterdir())) == CASES
