"""The command: its output, and its end when interrupted."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from nnunet_unifiedloss.cli import main
from tests.advise.conftest import write_dataset, write_plans

ARRAY = np.zeros((20, 40, 40), dtype=np.uint8)
ARRAY[2:4, 2:5, 2:5] = 1


def test_the_output(raw, capsys):
    write_dataset(raw, [ARRAY, ARRAY * 0])
    assert main(["advise", "-d", "4", "-np", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Dataset004_Test, 3d_fullres (not planned yet), 2 cases\n")
    (row,) = [line for line in out.splitlines() if line.startswith("  lesion")]
    cells = ["lesion", "0.028 %", "1", "1", "1", "18 (18–18)", "0 (0%)", "–", "0%"]
    assert re.split("  +", row.strip()) == cells
    assert "  nnUNetTrainerUnifiedFocal (loss: 1.2 × time, 0.95 × memory)\n" in out
    assert "\n    lesion: 0.028 % of the voxels\n" in out
    # those with the same reasons stand together
    assert "\n  nnUNetTrainerCrossEntropy, nnUNetTrainerFocal\n" in out
    assert "nnUNetv2_plan_and_preprocess -d Dataset004_Test --no_pp" in out
    assert out.splitlines()[-2].startswith("nnunet-unifiedloss sweep -d 4 -c 3d_fullres -tr ")
    assert out.splitlines()[-1].startswith("nnunet-unifiedloss compare -d 4 -c 3d_fullres -tr ")
    assert "error" not in err


def test_with_plans(raw, preprocessed, capsys):
    write_dataset(raw, [ARRAY])
    settings = {"spacing": [1, 1, 1], "patch_size": [20, 40, 40], "batch_size": 2}
    write_plans(preprocessed, configurations={"3d_fullres": settings})
    assert main(["advise", "-d", "4", "-np", "1"]) == 0
    out = capsys.readouterr().out
    assert "3d_fullres (nnUNetPlans)" in out
    assert "   100%   " in out
    assert "--no_pp" not in out


def test_a_narrow_terminal_breaks_no_names(raw, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "dumb")  # 80 columns, no colours
    write_dataset(raw, [ARRAY], {"a rather long name of a structure": 1})
    assert main(["advise", "-d", "4", "-np", "1"]) == 0
    out = sys.stdout.getvalue()
    assert "  a rather long name of a structure: voxels 0.056 %, cases without 0, " in out
    assert "…" not in out
    assert out.splitlines()[-1].startswith("nnunet-unifiedloss compare")  # to copy: unbroken


def test_json(raw, capsys):
    write_dataset(raw, [ARRAY])
    assert main(["advise", "-d", "4", "-np", "1", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["dataset"] == "Dataset004_Test"
    assert content["structures"][0]["components"] == 1


@pytest.mark.parametrize("delay", [0, pytest.param(1.5, marks=pytest.mark.slow)])
def test_interruption_leaves_no_process_and_no_traceback(raw, delay):
    """Ctrl-C reaches the command and its processes."""
    folder = write_dataset(raw, [np.tile(ARRAY, (3, 6, 6))]) / "labelsTr"
    for index in range(1, 60):
        (folder / f"case_{index}.nii.gz").symlink_to(folder / "case_0.nii.gz")
    command = [sys.executable, "-m", "nnunet_unifiedloss", "advise", "-d", "4", "-np", "2"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    while len(psutil.Process(process.pid).children()) < 3:  # two workers, one helper of Python's
        time.sleep(0.005)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.split()) == (130, ["interrupted"])
    deadline = time.monotonic() + 20
    while _exists(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _exists(process.pid)


def _exists(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
