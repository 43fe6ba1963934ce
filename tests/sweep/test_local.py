"""Sweeps on this computer: however one ends, nothing is lost and nothing runs twice."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from nnunet_unifiedloss.cli import main
from nnunet_unifiedloss.cli import sweep as cli_sweep
from nnunet_unifiedloss.results.trainings import Training, state
from nnunet_unifiedloss.sweep import local, look_at_all, plan_jobs
from nnunet_unifiedloss.sweep.attempts import begin, last_attempt
from nnunet_unifiedloss.sweep.display import Display
from nnunet_unifiedloss.sweep.local import LocalSweep
from nnunet_unifiedloss.sweep.runner import EXIT_BUSY, JobFailedError, carry_out
from nnunet_unifiedloss.training import install, probe
from tests.helpers import fake_nnunet
from tests.helpers.fake_nnunet import DATASET, EPOCHS, FILE, epochs_trained, finish, make_folders


@pytest.fixture
def folders(tmp_path, monkeypatch) -> dict[str, Path]:
    variables = make_folders(tmp_path)
    path = os.pathsep.join((str(FILE.parents[2]), os.environ.get("PYTHONPATH", "")))
    for name, value in (variables | {"PYTHONPATH": path}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    fake_nnunet.look_often()
    return {name: Path(value) for name, value in variables.items()}


def fold(folders, trainer: str, number: str = "0", configuration: str = "2d") -> Path:
    training = Training(DATASET, configuration, "nnUNetPlans", trainer, number)
    return training.folder(folders["nnUNet_results"])


def run(jobs, gpus=(), parallel=1):
    return LocalSweep(jobs, gpus, parallel, Display(Console(width=300))).run()


def start_sweep(
    trainers: str, folds: str, parallel: int = 1, before: Sequence[str] = ()
) -> subprocess.Popen:
    return subprocess.Popen(
        [*before, sys.executable, str(FILE), "sweep", trainers, folds, str(parallel)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_until(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition is not met in time"
        time.sleep(0.02)


def trainings_running(folders) -> list[int]:
    """Return the processes that train in these folders."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if str(FILE) in words and "train" in words:
            try:
                here = process.environ().get("nnUNet_results") == str(folders["nnUNet_results"])
            except psutil.Error:
                continue
            if here and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def test_jobs_run_in_parallel_and_are_pinned_to_gpus(folders):
    jobs = fake_nnunet.jobs(["A", "B"], ["0", "1"])
    assert {status.state for status in run(jobs, gpus=["3", "MIG-7"], parallel=2)} == {"done"}
    pinned = []
    for job in jobs:
        (log,) = job.folder.glob("training_log_*.txt")
        pinned.append(log.read_text().splitlines()[0].split("GPU ")[1].strip())
        assert epochs_trained(job.folder) == list(range(EPOCHS))
        assert job.records.joinpath("attempt_001.log").read_text().startswith("CUDA_VISIBLE_DEV")
    assert sorted(pinned) == ["3", "3", "MIG-7", "MIG-7"]
    before = {job.name: job.records.stat().st_mtime_ns for job in jobs}
    run(jobs)
    assert {job.name: job.records.stat().st_mtime_ns for job in jobs} == before  # nothing to do


def test_the_live_table_includes_jobs_that_were_done_before(folders):
    shown = []

    class Recorder(Display):
        def show(self, statuses):
            shown.append([status.state for status in statuses])

    first, second = fake_nnunet.jobs(["A", "B"], ["0"])
    finish(_made(second.folder))
    LocalSweep([first, second], [], 1, Recorder(Console())).run()
    assert shown[0][1] == "done"


def test_a_failure_stops_only_what_depends_on_it(folders, capsys):
    failing, other = fake_nnunet.jobs(["Raises", "B"], ["0"])
    dependent = fake_nnunet.FakeTraining(
        Training(DATASET, "3d_fullres", "nnUNetPlans", "C", "0"), requires=(failing,)
    )
    statuses = run([failing, dependent, other])
    assert [status.state for status in statuses] == ["failed", "blocked", "done"]
    assert statuses[0].error == "ArithmeticError: this trainer raises"
    assert "Traceback" in statuses[0].log.read_text()
    assert not dependent.folder.exists()
    assert "failed: " in capsys.readouterr().out
    # fixed since: the same command runs only what is missing
    fake = fake_nnunet.jobs(["B"], ["0"])[0]
    finish(failing.folder)
    statuses = run([failing, dependent, fake])
    assert [status.state for status in statuses] == ["done", "done", "done"]


def test_a_command_without_results_has_failed(folders, monkeypatch):
    monkeypatch.setattr(fake_nnunet.FakeTraining, "command", lambda _: ["python", "--version"])
    (job,) = fake_nnunet.jobs(["A"], ["0"])
    with pytest.raises(JobFailedError, match="python ended without its results"):
        carry_out(job)
    (status,) = look_at_all([job])
    assert (status.state, status.error) == ("failed", "python ended without its results")


def test_a_runner_that_cannot_start_is_explained(folders, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", "/none")  # so that it does not find the fake training,
    monkeypatch.chdir(tmp_path)  # nor in the folder that it runs in
    (status,) = run(fake_nnunet.jobs(["A"], ["0"]))
    assert status.state == "failed"
    assert "ended without its results, failed with exit status 1: " in status.error
    assert "No module named" in status.error


def test_a_runner_ends_with_an_exit_status_and_its_last_words(folders, monkeypatch):
    done, failing, busy = fake_nnunet.jobs(["A", "Raises", "B"], ["0"])
    with begin(busy.records, busy.name):
        runners = [local._start_runner(job, None) for job in (done, failing, busy)]
        assert [runner.process.wait(60) for runner in runners] == [0, 1, EXIT_BUSY]
    monkeypatch.delenv("nnUNet_results")
    breaks = local._start_runner(done, None)
    assert breaks.process.wait(60) == 1
    assert "ValueError: nnUNet_results is not set" in breaks.last_words()


def test_one_unreadable_file_does_not_stop_other_jobs(folders):
    first, second = fake_nnunet.jobs(["A", "B"], ["0"])
    (first.folder / "validation" / "summary.json").mkdir(parents=True)
    statuses = run([first, second])
    assert [status.state for status in statuses] == ["failed", "done"]
    assert "IsADirectoryError" in statuses[0].error


@pytest.mark.parametrize("fails", [False, True])
def test_a_preparation_comes_first(folders, monkeypatch, fails):
    data = folders["nnUNet_preprocessed"] / DATASET / "nnUNetPlans_2d"
    (data / "case_3.pkl").unlink()
    if fails:
        monkeypatch.setenv("FAKE_PREPARATION_FAILS", "1")
    statuses = run(fake_nnunet.jobs(["A", "B"], ["0"]), parallel=3)
    expected = ["failed", "blocked", "blocked"] if fails else ["done", "done", "done"]
    assert [status.state for status in statuses] == expected
    assert (data / "case_3.pkl").exists() != fails


def test_unplanned_configurations_are_left_out(folders):
    plans = folders["nnUNet_preprocessed"] / DATASET / "nnUNetPlans.json"
    jobs = fake_nnunet.jobs(["A"], ["0"], ("2d", "3d_fullres"))
    plans.write_text(json.dumps({"configurations": {"2d": {}}}))
    assert [status.state for status in run(jobs)] == ["done", "unplanned"]


def test_a_killed_sweep_continues_when_started_again(folders, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.4")
    sweep = start_sweep("A,B", "0,1")
    finished, interrupted = fold(folders, "A", "0"), fold(folders, "A", "1")
    wait_until(lambda: (interrupted / "checkpoint_latest.pth").exists())
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    wait_until(lambda: not trainings_running(folders), 20)  # no training outlives the sweep
    before = (finished / "validation" / "summary.json").stat().st_mtime_ns
    assert state(interrupted) == "interrupted"
    assert 0 < len(epochs_trained(interrupted)) < EPOCHS
    monkeypatch.setenv("FAKE_SECONDS", "0.05")
    sweep = start_sweep("A,B", "0,1")
    output, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 0, output
    assert "--c" in output
    assert output.count("started: ") == 3
    assert (finished / "validation" / "summary.json").stat().st_mtime_ns == before
    epochs = epochs_trained(interrupted)  # at most the one that was cut off is trained twice
    assert sorted(set(epochs)) == list(range(EPOCHS))
    assert len(epochs) <= EPOCHS + 1
    assert len(list(interrupted.glob("training_log_*.txt"))) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_stops_all_trainings(folders, monkeypatch, number):
    monkeypatch.setenv("FAKE_SECONDS", "0.5")
    sweep = start_sweep("A,B", "0", parallel=2)
    wait_until(lambda: all((fold(folders, t) / "checkpoint_latest.pth").exists() for t in "AB"))
    assert len(trainings_running(folders)) == 2
    sweep.send_signal(number)
    sweep.communicate(timeout=30)
    assert sweep.returncode != 0
    assert trainings_running(folders) == []
    jobs = fake_nnunet.jobs(["A", "B"], ["0"])
    assert [status.state for status in look_at_all(jobs)] == ["interrupted", "interrupted"]


def test_under_nohup_a_sweep_outlives_the_terminal(folders, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.3")
    sweep = start_sweep("A", "0", before=["nohup"])
    wait_until(lambda: epochs_trained(fold(folders, "A")))
    sweep.send_signal(signal.SIGHUP)
    sweep.communicate(timeout=30)
    assert sweep.returncode == 0
    assert epochs_trained(fold(folders, "A")) == list(range(EPOCHS))


def test_a_training_whose_runner_was_killed_is_waited_for(folders, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.3")
    sweep = start_sweep("A", "0")
    wait_until(lambda: epochs_trained(fold(folders, "A")))
    (job,) = fake_nnunet.jobs(["A"], ["0"])
    os.kill(last_attempt(job.records).owner.pid, signal.SIGKILL)
    output, _ = sweep.communicate(timeout=30)
    assert sweep.returncode == 0, output
    assert epochs_trained(job.folder) == list(range(EPOCHS))


def test_a_checkpoint_that_is_being_written_is_waited_for(folders, monkeypatch):
    """nnU-Net writes in place, so stopping it would lose the last checkpoint as well."""
    monkeypatch.setenv("FAKE_SECONDS", "3")
    sweep = start_sweep("A", "0")
    checkpoint = fold(folders, "A") / "checkpoint_best.pth"
    wait_until(lambda: epochs_trained(fold(folders, "A")))
    checkpoint.write_bytes(b"half of it")
    sweep.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert trainings_running(folders)
    fake_nnunet.write_checkpoint(checkpoint, 1)
    sweep.communicate(timeout=30)
    assert trainings_running(folders) == []


def test_two_sweeps_at_once_share_the_work(folders, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.15")
    sweeps = [start_sweep("A,B", "0,1,2", parallel=2) for _ in range(2)]
    outputs = [sweep.communicate(timeout=120)[0] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0], outputs
    jobs = fake_nnunet.jobs(["A", "B"], ["0", "1", "2"])
    for job in jobs:  # the fake training fails where it runs twice, and every epoch is there once
        assert epochs_trained(job.folder) == list(range(EPOCHS))
    started = [output.count("started: ") for output in outputs]
    assert min(started) > 0


def test_a_training_started_by_hand_is_waited_for(folders, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.5")
    (job,) = fake_nnunet.jobs(["A"], ["0"])
    hand = subprocess.Popen([sys.executable, *job.command()[1:]])
    wait_until(lambda: epochs_trained(job.folder))
    (status,) = run([job])
    assert hand.wait(30) == 0
    assert status.state == "done"
    assert epochs_trained(job.folder) == list(range(EPOCHS))
    assert not list(job.records.glob("attempt_*"))


# --- the command


def probe_here(request):
    """Look trainers up in this process: a new one would import torch and nnU-Net again."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        probe.take_steps(request)
    return output.getvalue(), ""


@pytest.fixture
def command(folders, monkeypatch):
    monkeypatch.setattr(probe, "_run_child", probe_here)
    monkeypatch.setenv(install.VARIABLE, str(install.trainers_folder()))
    return ["sweep", "-d", "4", "-c", "2d", "-tr", "nnUNetTrainerTversky", "nnUNetTrainer"]


def test_dry_run_prints_the_commands_and_runs_nothing(folders, command, capsys):
    finish(_made(fold(folders, "nnUNetTrainer", "1")))
    assert main([*command, "-f", "0", "1", "1", "--dry-run", "-device", "cpu"]) == 0
    shown = capsys.readouterr()
    assert [shlex.split(line) for line in shown.out.splitlines()] == [
        ["nnUNetv2_train", DATASET, "2d", number, "-tr", trainer, "-device", "cpu"]
        for trainer, number in [
            ("nnUNetTrainerTversky", "0"),
            ("nnUNetTrainerTversky", "1"),
            ("nnUNetTrainer", "0"),
        ]
    ]
    assert "1 done, 3 not started" in shown.err
    assert not fold(folders, "nnUNetTrainer").exists()


def test_flags_of_nnunet_are_passed_on(command, capsys):
    flags = ["-device", "cuda", "-num_gpus", "2", "--npz"]
    assert main([*command, "-f", "0", "--dry-run", *flags, "--gpus", "0,1", "2,3"]) == 0
    first, _ = capsys.readouterr().out.splitlines()
    assert first.split()[4:] == ["-tr", "nnUNetTrainerTversky", *flags]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


TRAINERS = "nnUNetTrainerTversky nnUNetTrainer"
COMPARE = f"nnunet-unifiedloss compare -d {DATASET} -c 2d -tr {TRAINERS} -f 0"


def test_the_comparison_follows_when_all_jobs_are_done(folders, command, capsys, monkeypatch):
    for trainer in ("nnUNetTrainerTversky", "nnUNetTrainer"):
        finish(_made(fold(folders, trainer)))
    assert main([*command, "-f", "0"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"{COMPARE} -o report"
    ran = []

    def compare(arguments, check):
        ran.append(arguments)
        return subprocess.CompletedProcess(arguments, -9)

    monkeypatch.setattr(cli_sweep.subprocess, "run", compare)
    assert main([*command, "-f", "0", "--compare", "-o", "my report"]) == -9
    expected = shlex.split(f"{COMPARE} -o 'my report'")[1:]
    assert ran[0][-len(expected) :] == expected


def test_a_failure_sets_the_exit_code(folders, command, capsys, monkeypatch):
    monkeypatch.setattr(
        "nnunet_unifiedloss.sweep.plan_jobs",
        lambda *_, **__: fake_nnunet.jobs(["Raises", "B"], ["0"]),
    )
    assert main([*command, "-f", "0"]) == 1
    shown = capsys.readouterr().out
    assert "1 done, 1 failed" in shown
    assert "ArithmeticError: this trainer raises" in shown
    assert "compare" not in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--json"], "--json: is for --status"),
        (["--slurm", "time=60"], "--slurm: is for --launcher slurm"),
        (["--gpus", "0", "--launcher", "slurm"], "--gpus: is for --launcher local"),
        (["--gpus", "0", "-device", "cpu"], "--gpus: makes no sense with -device cpu"),
        (["-tr", "a__b"], "-tr 'a__b': "),
        (["-tr", ""], "-tr '': not a trainer's name"),
        (["-num_gpus", "2", "-device", "cpu"], "-num_gpus: makes no sense with -device cpu"),
        (["-num_gpus", "2", "--gpus", "0", "1"], "--gpus: -num_gpus is 2; remedy: as many"),
        (["--gpus", "0,1"], "--gpus: -num_gpus is 1"),
        (["-d", "77"], "data set 77: no folder"),
        (["-c", "3d"], "-c 3d: none of the data sets"),
    ],
)
def test_contradictory_flags_are_refused(folders, command, capsys, flags, message):
    assert main([*command, *flags]) == 1
    assert message in capsys.readouterr().err


def test_missing_and_malformed_flags_are_refused(folders, capsys):
    assert main(["sweep", "-d", "4"]) == 1
    assert "-c and -tr: only optional with --status" in capsys.readouterr().err
    for wrong in (["-f", "x"], ["--jobs", "0"]):
        with pytest.raises(SystemExit) as left:
            main(["sweep", "-d", "4", "-c", "2d", "-tr", "A", *wrong])
        assert left.value.code == 2


def test_trainers_that_nnunet_would_not_find_are_refused(folders, capsys, monkeypatch):
    monkeypatch.setattr(install, "module_state", lambda: "absent")
    monkeypatch.setenv(install.VARIABLE, "")
    names = ["nnUNetTrainer", "nnUNetTrainerUnifiedFocal_delta0.7"]
    for name in names:
        finish(_made(fold(folders, name)))
    assert main(["sweep", "-d", "4", "-c", "2d", "-f", "0", "-tr", *names]) == 1
    shown = capsys.readouterr().err
    assert f"does not find {names[1]}" in shown
    assert "remedy: nnunet-unifiedloss install" in shown
    monkeypatch.setenv(install.VARIABLE, str(install.trainers_folder()))
    assert main(["sweep", "-d", "4", "-c", "2d", "-f", "0", "-tr", *names]) == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nnUNetTrainerUnifedFocal",
            "nnU-Net finds no such trainer; remedy: did you mean",
        ),
        ("nnUNetTrainerUnifiedFocal_detla0.7", "unknown part 'detla0.7'; did you mean 'delta'?"),
        ("nnUNetTrainerUnifiedFocal_gamma1", "gamma: must be >= 0 and < 1, got 1"),
    ],
)
def test_misspelt_trainers_are_refused(folders, command, capsys, name, message):
    """They are refused before anything runs, and in a dry run too."""
    assert main([*command, name, "--dry-run"]) == 1
    shown = capsys.readouterr()
    assert f"{name}: {message}" in shown.err
    assert not shown.out


def test_a_missing_slurm_is_reported(folders, monkeypatch, command, capsys):
    monkeypatch.setenv(install.VARIABLE, str(install.trainers_folder()))
    monkeypatch.setenv("PATH", str(folders["nnUNet_raw"]))
    assert main([*command, "-f", "0", "--launcher", "slurm"]) == 1
    assert "srun" in capsys.readouterr().err


def test_a_thousand_jobs_need_neither_torch_nor_nnunet(folders):
    code = (
        "import sys; from nnunet_unifiedloss.sweep import plan_jobs, look_at_all\n"
        f"jobs = plan_jobs(['{DATASET}'], ['2d'], [f'T{{n}}' for n in range(200)], list('01234'))\n"
        "assert len(look_at_all(jobs)) == 1000\n"
        "assert not {'torch', 'nnunetv2', 'pandas', 'submitit'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert len(plan_jobs([DATASET], ["2d"], ["A"], ["0"])) == 1
