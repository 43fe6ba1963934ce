"""Locks of attempts: one owner at a time, on this computer and across a cluster."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nnunet_unifiedloss.sweep import attempts
from nnunet_unifiedloss.sweep.attempts import Process, alone, begin, clock, last_attempt

CONTENDERS = 8


def write_attempt(folder: Path, number: int = 1, **changes) -> Path:
    """Write an attempt of a process that has ended."""
    own = begin(folder, "job")
    assert own is not None
    path = folder / f"attempt_{number:03d}.json"
    attempt = replace(own.attempt, path=path, owner=gone(), **changes)
    own.attempt.path.unlink()
    path.write_text(attempts._as_json(attempt))
    return path


def gone() -> Process:
    """Return a process of this machine that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = Process.of(process.pid)
    process.communicate()
    return found


def is_alive(folder: Path) -> bool:
    last = last_attempt(folder)
    assert last is not None
    return last.is_alive(clock(folder))


def age(path: Path, seconds: float) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def test_only_one_attempt_runs_and_numbers_are_not_reused(tmp_path):
    assert last_attempt(tmp_path / "none") is None
    first = begin(tmp_path, "job")
    assert first is not None
    with first:
        assert begin(tmp_path, "job") is None
        first.end("failed", "why")
    last = last_attempt(tmp_path)
    assert (last.outcome, last.error, last.log.name) == ("failed", "why", "attempt_001.log")
    with begin(tmp_path, "job") as second:
        assert second.attempt.path.name == "attempt_002.json"
    assert last_attempt(tmp_path).outcome == "interrupted"  # left without an outcome
    assert len(list(tmp_path.glob("attempt_*.json"))) == 2


def contend(folder: Path, barrier, winners) -> None:
    for round_ in range(5):
        barrier.wait()
        own = begin(folder / str(round_), "job")
        winners.put((round_, own is not None))
        barrier.wait()  # nobody ends before all have tried


@pytest.mark.parametrize("before", ["nothing", "a dead one"])
def test_exactly_one_of_many_contenders_wins(tmp_path, before):
    if before == "a dead one":
        for round_ in range(5):
            write_attempt(tmp_path / str(round_))
    context = multiprocessing.get_context("fork")
    barrier, winners = context.Barrier(CONTENDERS), context.Queue()
    processes = [
        context.Process(target=contend, args=(tmp_path, barrier, winners))
        for _ in range(CONTENDERS)
    ]
    for process in processes:
        process.start()
    results = [winners.get(timeout=60) for _ in range(5 * CONTENDERS)]
    for process in processes:
        process.join(60)
    for round_ in range(5):
        assert [won for number, won in results if number == round_].count(True) == 1


def test_a_dead_process_holds_no_lock(tmp_path):
    write_attempt(tmp_path)
    assert not is_alive(tmp_path)
    assert begin(tmp_path, "job") is not None


def test_a_reused_process_number_holds_no_lock(tmp_path):
    mine = Process.of(os.getpid())
    assert mine.is_alive()
    assert not replace(mine, started=mine.started - 100).is_alive()


def test_the_command_of_a_killed_owner_keeps_the_lock(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        write_attempt(tmp_path, child=Process.of(child.pid))
        assert is_alive(tmp_path)
        assert begin(tmp_path, "job") is None
    finally:
        child.communicate()
    assert not is_alive(tmp_path)


def test_on_another_computer_the_heartbeat_decides(tmp_path, monkeypatch):
    path = write_attempt(tmp_path)
    monkeypatch.setattr(attempts, "this_machine", lambda: "another computer")
    assert is_alive(tmp_path)
    age(path, attempts.SECONDS_WITHOUT_HEARTBEAT - 5)
    assert is_alive(tmp_path)
    age(path, 10)
    assert not is_alive(tmp_path)


@pytest.mark.parametrize("seconds", [-24 * 3600, 24 * 3600])
def test_a_heartbeat_of_a_wrong_clock_holds_no_lock(tmp_path, monkeypatch, seconds):
    age(write_attempt(tmp_path), seconds)
    monkeypatch.setattr(attempts, "this_machine", lambda: "another computer")
    assert not is_alive(tmp_path)


def test_users_need_no_name():
    """A container may run with a user number that it does not know."""
    code = (
        "import os; from nnunet_unifiedloss.sweep import attempts\n"
        "os.getuid = lambda: 54321\n"
        "assert '54321' in attempts.this_machine()"
    )
    names = ("LOGNAME", "USER", "LNAME", "USERNAME")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_times_are_those_of_the_file_server(tmp_path, monkeypatch):
    write_attempt(tmp_path)
    monkeypatch.setattr(attempts, "this_machine", lambda: "another computer")
    monkeypatch.setattr(time, "time", lambda: 1e12)  # a computer whose clock is wrong
    assert is_alive(tmp_path)


def test_an_incomplete_file_holds_the_lock_only_as_long_as_it_may_be_being_written(tmp_path):
    path = tmp_path / "attempt_007.json"
    path.write_text('{"job": "jo')
    assert begin(tmp_path, "job") is None
    age(path, attempts.SECONDS_WITHOUT_HEARTBEAT + 5)
    own = begin(tmp_path, "job")
    assert own is not None
    assert own.attempt.path.name == "attempt_008.json"


def test_a_requeued_slurm_job_takes_over_from_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    write_attempt(tmp_path, slurm_job=("12_3", 0))
    monkeypatch.setattr(attempts, "this_machine", lambda: "another node")
    assert is_alive(tmp_path)  # another sweep in the same allocation
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert not is_alive(tmp_path)


def test_the_heartbeat_notices_a_takeover(tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "SECONDS_BETWEEN_HEARTBEATS", 0.05)
    with begin(tmp_path, "job") as own:
        age(own.attempt.path, 1000)
        before = own.attempt.last_heartbeat()
        time.sleep(0.3)
        assert own.attempt.last_heartbeat() > before + 900
        assert not own.lost
        (tmp_path / "attempt_002.json").write_text("{}")
        time.sleep(0.3)
        assert own.lost


def test_alone_waits_for_another_process(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from nnunet_unifiedloss.sweep.attempts import alone\n"
        "with alone(Path(sys.argv[1]), 'other'):\n"
        "    print('in', flush=True); input(); print(time.time(), flush=True)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout.readline() == "in\n"
        assert begin(tmp_path, "job") is None
        it.stdin.write("\n")
        it.stdin.flush()
        with alone(tmp_path, "job"):
            entered = time.time()
        assert float(it.stdout.readline()) <= entered


def test_attempts_are_read_as_they_were_written(tmp_path):
    with begin(tmp_path, "job") as own:
        own.update(child=Process.of(os.getpid()))
        assert last_attempt(tmp_path) == own.attempt
    assert json.loads((tmp_path / "attempt_001.json").read_text())["outcome"] == "interrupted"
