"""A sweep through a real Slurm of one node, which these tests start: see docs/sweep.md."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from nnunet_unifiedloss.sweep import look_at_all, read_queue, slurm
from nnunet_unifiedloss.sweep.attempts import last_attempt
from nnunet_unifiedloss.sweep.display import Display
from nnunet_unifiedloss.sweep.slurm import SlurmSweep
from nnunet_unifiedloss.sweep.status import submission
from tests.helpers import fake_nnunet, slurm_cluster
from tests.helpers.fake_nnunet import DATASET, EPOCHS, FILE, epochs_trained, make_folders
from tests.helpers.nnunet_workspace import Workspace
from tests.sweep.test_nnunet import RAISES, add_raising_trainer

pytestmark = pytest.mark.slurm
SMALL = ["mem=200M", "cpus_per_task=1", "time=10", "signal_delay_s=20"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if reason := slurm_cluster.missing():
        pytest.skip(reason)
    with slurm_cluster.slurm_cluster(tmp_path_factory.mktemp("slurm") / "cluster") as variables:
        yield variables


@pytest.fixture
def folders(cluster, tmp_path, monkeypatch) -> dict[str, Path]:
    variables = make_folders(tmp_path)
    path = os.pathsep.join((str(FILE.parents[2]), os.environ.get("PYTHONPATH", "")))
    for name, value in (variables | cluster | {"PYTHONPATH": path}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(slurm, "SECONDS_BETWEEN_LOOKS", 1.0)
    return {name: Path(value) for name, value in variables.items()}


class Running:
    """A sweep in a thread, so that the test can disturb its jobs."""

    def __init__(self, jobs, *options: str, parallel: int | None = None) -> None:
        self.jobs = jobs
        display = Display(Console(width=300))
        self._sweep = SlurmSweep(jobs, [*SMALL, *options], parallel, display)
        self._statuses: list = []
        self._thread = threading.Thread(target=lambda: self._statuses.extend(self._sweep.run()))
        self._thread.start()

    def states(self) -> list[str]:
        self._thread.join(400)
        assert not self._thread.is_alive()
        return [status.state for status in self._statuses]

    def errors(self) -> list[str | None]:
        return [status.error for status in self._statuses]

    def number(self, index: int = 0) -> str:
        """Wait until a job trains, and return its number in Slurm."""
        folder = self.jobs[index].folder
        wait_until(lambda: (folder / "checkpoint_latest.pth").exists())
        return submission(self.jobs[index])


def wait_until(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition is not met in time"
        time.sleep(0.1)


def tell(*command: str) -> None:
    subprocess.run(command, check=True, timeout=60)


def check_continued(job, starts: int = 2) -> None:
    """Check that only an interrupted epoch was trained twice, after nnU-Net's own ``--c``."""
    epochs = epochs_trained(job.folder)
    assert sorted(set(epochs)) == list(range(EPOCHS))
    assert len(epochs) <= EPOCHS + starts - 1
    assert len(list(job.folder.glob("training_log_*.txt"))) == starts
    log = (job.records / f"attempt_{starts:03d}.log").read_text()
    assert log.splitlines()[0].endswith(" --c")


def test_a_matrix_is_one_array_and_a_failure_stops_nothing_else(folders):
    running = Running(fake_nnunet.jobs(["A", "B", "Raises"], ["0", "1"]), parallel=2)
    assert running.states() == ["done"] * 4 + ["failed"] * 2
    assert running.errors()[-1] == "ArithmeticError: this trainer raises"
    numbers = {submission(job) for job in running.jobs}
    assert len(numbers) == 6
    assert len({number.split("_")[0] for number in numbers}) == 1
    for job in running.jobs[:4]:
        assert epochs_trained(job.folder) == list(range(EPOCHS))
    # the same command again does only what is missing
    again = Running(fake_nnunet.jobs(["A", "B", "Raises"], ["0", "1"]))
    assert again.states() == ["done"] * 4 + ["failed"] * 2
    assert [submission(job) in numbers for job in again.jobs] == [True] * 4 + [False] * 2


def test_requeued_by_scontrol(folders, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "3")
    running = Running(fake_nnunet.jobs(["A", "B"], ["0"]))
    tell("scontrol", "requeue", running.number())
    assert running.states() == ["done", "done"]
    check_continued(running.jobs[0])
    assert epochs_trained(running.jobs[1].folder) == list(range(EPOCHS))


def test_requeued_by_submitit_when_the_time_is_nearly_over(folders, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "15")  # 90 s of training, one minute of time
    running = Running(fake_nnunet.jobs(["A"], ["0"]), "time=1")
    assert running.states() == ["done"]
    starts = len(list(running.jobs[0].folder.glob("training_log_*.txt")))
    assert starts > 1
    check_continued(running.jobs[0], starts)


def test_preempted_by_an_urgent_job(folders, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "8")
    running = Running(fake_nnunet.jobs(["A"], ["0"]), "cpus_per_task=2")
    running.number()
    options = "--partition=urgent --cpus-per-task=2 --mem=100 --output=/dev/null"
    tell("sbatch", *options.split(), "--wrap=sleep 1")
    assert running.states() == ["done"]
    check_continued(running.jobs[0])


@pytest.mark.parametrize("fails", [False, True])
def test_trainings_wait_for_the_preparation(folders, monkeypatch, fails):
    (folders["nnUNet_preprocessed"] / DATASET / "nnUNetPlans_2d" / "case_3.pkl").unlink()
    if fails:
        monkeypatch.setenv("FAKE_PREPARATION_FAILS", "1")
    running = Running(fake_nnunet.jobs(["A"], ["0", "1"]))
    assert running.states() == (["failed", "blocked", "blocked"] if fails else ["done"] * 3)
    wait_until(lambda: read_queue() == {})  # nothing waits there for ever
    assert running.jobs[1].folder.exists() != fails


def test_a_second_sweep_takes_over_submitted_jobs(folders, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "2")
    jobs = fake_nnunet.jobs(["A", "B", "C"], ["0"])
    first = SlurmSweep(jobs, SMALL, None, Display(Console()))
    first._submit(first._look())
    numbers = [submission(job) for job in jobs]
    wait_until(lambda: "running" in [status.state for status in look_at_all(jobs, read_queue())])
    running = Running(jobs)
    assert running.states() == ["done"] * 3
    assert [submission(job) for job in jobs] == numbers
    for job in jobs:
        assert epochs_trained(job.folder) == list(range(EPOCHS))


def test_cancelled_jobs_are_reported(folders, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "2")
    running = Running(fake_nnunet.jobs(["A"], ["0"]))
    tell("scancel", running.number())
    assert running.states() == ["failed"]
    assert "ended without its results" in running.errors()[0]
    assert [status.state for status in look_at_all(running.jobs, {})] == ["interrupted"]


def test_a_wrong_option_is_named(folders):
    jobs = fake_nnunet.jobs(["A"], ["0"])
    for option, message in {
        "time=soon": "--slurm time=soon: expected minutes",
        "partition": "--slurm partition: expected key=value",
        "max_num_timeout=often": "--slurm max_num_timeout=often: expected a whole number",
    }.items():
        with pytest.raises(ValueError, match=message):
            SlurmSweep(jobs, [option], None, Display(Console())).run()
    with pytest.raises(RuntimeError, match=r"Slurm refuses the jobs.*invalid partition"):
        SlurmSweep(jobs, ["partition=none"], None, Display(Console())).run()


@pytest.mark.slow
def test_nnunet_itself(cluster, test_data, tmp_path):
    """2 trainers × 2 folds of the hippocampus, one requeued, and a trainer that raises."""
    workspace = Workspace(tmp_path, **cluster)
    workspace.prepare(test_data, "plain", ["2d"])
    trainers = [
        "nnUNetTrainerUnifiedFocal_3epochs_10iters",
        "nnUNetTrainerTversky_2epochs_2iters",
        RAISES,
    ]
    add_raising_trainer(workspace, tmp_path / "raising")
    command = ["sweep", "-d", "4", "-c", "2d", "-f", "0", "1", "-device", "cpu", "-tr", *trainers]
    options = ["--launcher", "slurm", "--slurm", "mem=900M", "cpus_per_task=1", "time=60"]
    sweep = subprocess.Popen(
        [sys.executable, "-m", "nnunet_unifiedloss", *command, *options],
        env=workspace.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    folder = workspace.fold(trainers[0], "2d")
    wait_until(lambda: (folder / "checkpoint_best.pth").exists(), 600)
    records = workspace.results / "unifiedloss_sweep" / folder.relative_to(workspace.results)
    subprocess.run(
        ["scontrol", "requeue", (records / "slurm_job").read_text().strip()],
        env=workspace.environment,
        check=True,
    )
    output, _ = sweep.communicate(timeout=1800)
    assert sweep.returncode == 1
    assert "4 done, 2 failed" in output
    assert "ArithmeticError: this trainer raises" in output
    assert epochs_trained(folder) in ([0, 1, 2], [0, 1, 1, 2])
    assert last_attempt(records).log.read_text().splitlines()[0].endswith("--c")
