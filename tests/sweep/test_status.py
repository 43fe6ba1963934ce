"""The status of trainings, read from nnU-Net's own files."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import pytest
from rich.console import Console

from nnunet_unifiedloss.cli import main
from nnunet_unifiedloss.sweep import look_at_all, plan_jobs
from nnunet_unifiedloss.sweep.attempts import begin
from nnunet_unifiedloss.sweep.progress import read_progress
from nnunet_unifiedloss.sweep.status import BY_HAND, SUBMISSION
from nnunet_unifiedloss.sweep.tables import clock_time, counts, live_table, matrix_table, remarks
from tests.helpers.fake_nnunet import DATASET, finish, make_folders, write_checkpoint

TRAINERS = ["nnUNetTrainer", "nnUNetTrainerUnifiedFocal"]
# as nnU-Net 2.8.1 writes it
START = """
2026-11-22 02:41:02.806612: Unable to plot network architecture:
2026-11-22 02:41:02.815660:
2026-11-22 02:41:02.815748: Epoch 0
2026-11-22 02:41:02.815881: Current learning rate: 0.036
2026-11-22 02:41:43.506797: train_loss 0.3722
2026-11-22 02:41:43.507021: Pseudo dice [np.float32(0.4284), np.float32(0.0091)]
2026-11-22 02:41:43.509100: Epoch time: 40.0 s
2026-11-22 02:41:43.509425: Yayy! New best EMA pseudo Dice: 0.21870000660419464
2026-11-22 02:41:44.164563:
2026-11-22 02:41:44.164817: Epoch 1
2026-11-22 02:41:44.164967: Current learning rate: 0.02945
"""
SECOND = """2026-11-22 02:42:23.749510: Pseudo dice [np.float32(0.6), np.float32(nan)]
2026-11-22 02:42:23.749576: Epoch time: 30.0 s
"""
DONE = """2026-11-22 02:44:02.238306: Training done.
2026-11-22 02:44:02.255236: predicting hippocampus_011
"""


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    for name, value in make_folders(tmp_path).items():
        monkeypatch.setenv(name, value)
    return plan_jobs([DATASET], ["2d"], TRAINERS, ["0", "1"])


def log(folder: Path, text: str, age: float = 0.0, name: str = "1") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "debug.json").write_text(json.dumps({"num_epochs": "5"}))
    path = folder / f"training_log_{name}.txt"
    path.write_text("\n".join(f"{line} " for line in text.splitlines()))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def states(jobs, queue=None) -> list[str]:
    return [status.state for status in look_at_all(jobs, queue)]


def test_progress_is_read_from_the_log(tmp_path):
    assert read_progress(tmp_path) is None
    assert read_progress(tmp_path / "none") is None
    log(tmp_path, START)
    progress = read_progress(tmp_path)
    assert (progress.epoch, progress.epochs, progress.validating) == (1, 5, False)
    assert progress.pseudo_dice == pytest.approx((0.4284 + 0.0091) / 2)
    assert progress.seconds_left == 4 * 40
    log(tmp_path, START + SECOND)
    progress = read_progress(tmp_path)
    assert (progress.epoch, progress.pseudo_dice, progress.seconds_left) == (2, 0.6, 3 * 35)
    log(tmp_path, START + SECOND + DONE)
    progress = read_progress(tmp_path)
    assert (progress.epoch, progress.validating, progress.seconds_left) == (5, True, 0)


def test_only_the_end_of_a_long_log_is_read(tmp_path):
    path = log(tmp_path, "start\n" * 10**6 + START + SECOND)
    start = time.perf_counter()
    for _ in range(20):
        assert read_progress(tmp_path).epoch == 2
    assert time.perf_counter() - start < 1  # a whole read of the 7 MB takes seconds
    path.write_bytes(b"\xff\x00 Epoch")  # cut in the middle of whatever
    assert read_progress(tmp_path).epoch is None


def test_a_continued_training_has_several_logs(tmp_path):
    log(tmp_path, START + SECOND, age=50)
    log(tmp_path, "2026-11-22 03:00:00.0: Using splits\n", name="2")
    assert read_progress(tmp_path).epoch == 2
    log(tmp_path, "2026-11-22 03:00:00.0: Epoch 2\n", name="2")
    assert read_progress(tmp_path).epoch == 2


def test_every_state_there_is(jobs, tmp_path):
    done, interrupted, by_hand, _ = jobs
    write_checkpoint(done.folder / "checkpoint_final.pth", 5)
    finish(done.folder, dice=0.75)
    write_checkpoint(interrupted.folder / "checkpoint_best.pth", 2)
    log(interrupted.folder, START, age=3600)
    log(by_hand.folder, START, age=60)
    assert states(jobs) == ["done", "interrupted", "running", "not started"]
    statuses = look_at_all(jobs)
    assert statuses[0].dice == 0.75
    assert statuses[1].progress.epoch == 1
    assert statuses[2].where == BY_HAND
    assert counts(statuses) == "1 done, 1 running, 1 interrupted, 1 not started"


@pytest.mark.parametrize(("age", "state"), [(500, "running"), (700, "not started")])
def test_a_log_that_does_not_grow_belongs_to_no_running_training(jobs, age, state):
    log(jobs[0].folder, START, age=age)
    assert states(jobs)[0] == state


def test_a_log_from_the_future_comes_from_a_wrong_clock(jobs):
    log(jobs[0].folder, START, age=-24 * 3600)
    assert states(jobs)[0] == "not started"


@pytest.mark.parametrize(
    "text",
    [
        "x: Epoch 1\nx: Pseudo dice [1.2.3]\nx: Epoch time: 1.2.3 s",
        "x: Epoch 1\nx: Pseudo dice []\nx: Epoch time: . s",
        "x: Epoch 1\nx: Pseudo dice [np.float32(0.5), ",
        "\0" * 9000,
    ],
)
def test_malformed_lines_of_a_log_are_ignored(jobs, text):
    log(jobs[0].folder, text)
    (jobs[0].folder / "debug.json").write_text("[]")
    (status, *_) = look_at_all(jobs)
    assert (status.state, status.progress.epochs) == ("running", None)
    assert status.progress.seconds_left is None


def test_a_log_of_long_epochs_may_grow_slowly(jobs):
    log(jobs[0].folder, START.replace("40.0 s", "3600.0 s"), age=2 * 3600)
    assert states(jobs)[0] == "running"


def test_the_last_lines_of_a_sweeps_own_attempt_do_not_count(jobs):
    with begin(jobs[0].records, jobs[0].name) as own:
        log(jobs[0].folder, START)
        assert states(jobs)[0] == "running"
        own.end("failed", "why")
    assert states(jobs)[0] == "failed"
    path = log(jobs[0].folder, START)
    os.utime(path, (time.time() + 60, time.time() + 60))  # continued by hand
    assert states(jobs)[0] == "running"


def test_a_failure_is_shown_with_its_log_until_it_is_fixed(jobs):
    with begin(jobs[0].records, jobs[0].name) as own:
        own.attempt.log.write_text("output")
        own.end("failed", "ArithmeticError: why")
    status = look_at_all(jobs)[0]
    assert remarks([status]) == [
        f"failed: {jobs[0].name}: ArithmeticError: why",
        f"  log: {own.attempt.log}",
    ]
    finish(jobs[0].folder)
    assert states(jobs)[0] == "done"


def test_jobs_that_require_a_failed_one_are_blocked(tmp_path, monkeypatch):
    for name, value in make_folders(tmp_path).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "nnUNet_preprocessed" / DATASET / "nnUNetPlans_2d" / "case_3.pkl").unlink()
    preparation, first, second = plan_jobs([DATASET], ["2d"], TRAINERS, ["0"])
    assert states([preparation, first, second]) == ["not started"] * 3
    with begin(preparation.records, preparation.name) as own:
        own.end("failed", "no space left")
    finish_folder = second.folder
    finish_folder.mkdir(parents=True)
    finish(finish_folder)
    statuses = look_at_all([preparation, first, second])
    assert [status.state for status in statuses] == ["failed", "blocked", "done"]
    assert statuses[1].error == f"needs {preparation.name}"


def test_slurms_queue(jobs):
    jobs[0].records.mkdir(parents=True)
    (jobs[0].records / SUBMISSION).write_text("12_3\n")
    assert states(jobs)[0] == "not started"
    status = look_at_all(jobs, {"12_3": "PENDING"})[0]
    assert (status.state, status.where) == ("queued", "Slurm job 12_3")


def test_plans_that_are_being_written(jobs, tmp_path):
    (tmp_path / "nnUNet_preprocessed" / DATASET / "nnUNetPlans.json").write_text("{")
    assert states(jobs) == ["not started"] * 4


def test_one_unreadable_folder_does_not_hide_the_others(jobs):
    jobs[0].records.parent.mkdir(parents=True)
    jobs[0].records.symlink_to(jobs[0].records.name)  # a loop, which no user may follow
    finish(_made(jobs[1].folder))
    statuses = look_at_all(jobs)
    assert [status.state for status in statuses] == ["failed", "done", "not started", "not started"]
    assert "cannot be read: " in statuses[0].error


def test_the_command(jobs, capsys):
    finish(_made(jobs[0].folder), dice=0.75)
    log(_made(jobs[3].folder), START + SECOND)
    arguments = ["sweep", "-d", "4", "-c", "2d", "-tr", *TRAINERS, "-f", "0", "1", "--status"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "done 0.750" in shown
    assert "running 2/5, pseudo Dice 0.600, 1 min left" in shown
    assert "1 done, 1 running, 2 not started" in shown
    assert main([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in rows] == ["done", "not started", "not started", "running"]
    assert rows[3]["trainer"] == TRAINERS[1]
    assert (rows[3]["epoch"], rows[3]["epochs"], rows[3]["where"]) == (2, 5, BY_HAND)
    # without a matrix: what is there
    assert main(["sweep", "-d", "4", "--status", "--json"]) == 0
    assert [row["fold"] for row in json.loads(capsys.readouterr().out)] == ["0", "1"]
    assert main(["sweep", "-d", "4", "-f", "1", "--status", "--json"]) == 0
    assert [row["fold"] for row in json.loads(capsys.readouterr().out)] == ["1"]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_the_live_table_shows_running_jobs_first(jobs):
    finish(_made(jobs[0].folder))
    log(_made(jobs[3].folder), START + SECOND)
    console = Console(width=150, file=io.StringIO())
    console.print(live_table(look_at_all(jobs), console))
    rows = [line for line in console.file.getvalue().splitlines() if DATASET in line]
    assert [row.split("│")[2].strip() for row in rows] == [
        "running",
        "not started",
        "not started",
        "done",
    ]
    cells = [cell.strip() for cell in rows[0].split("│")[3:7]]
    assert cells == ["2/5", "0.600", "1 min", BY_HAND]


@pytest.mark.parametrize("table", [matrix_table, live_table])
@pytest.mark.parametrize("width", [40, 80])
def test_on_a_narrow_terminal_names_stay_whole(jobs, table, width):
    finish(_made(jobs[0].folder), dice=0.75)
    log(_made(jobs[3].folder), START + SECOND)
    console = Console(width=width, file=io.StringIO())
    console.print(table(look_at_all(jobs), console))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    columns = list(zip(*[line.split("│")[1:3] for line in lines if "│" in line], strict=True))
    names, states = ("".join(column).replace(" ", "") for column in columns)
    assert DATASET in names
    assert all(trainer in names for trainer in TRAINERS)
    assert "done0.750" in states
    assert "running2/5,pseudoDice0.600,1minleft" in states


def test_remarks_show_what_the_matrix_does_not(tmp_path, monkeypatch, capsys):
    for name, value in make_folders(tmp_path).items():
        monkeypatch.setenv(name, value)
    new = tmp_path / "nnUNet_raw" / "Dataset005_New"
    new.mkdir()
    command = ["sweep", "-d", "4", "5", "-c", "2d", "3d_lowres", "-tr", *TRAINERS, "--status"]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        f"left out: {DATASET} 3d_lowres: nnU-Net has not planned this configuration",
        "not started: prepare Dataset005_New nnUNetPlans",
        "31 not started, 10 unplanned",
    ]
    assert main(["sweep", "-d", "5", "--status"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "no trainings"


def test_durations():
    assert clock_time(36 * 3600 + 120) == "36:02 h"
