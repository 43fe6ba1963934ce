"""Running the jobs of a sweep on this computer, several at a time, each on its own GPU."""

from __future__ import annotations

import contextlib
import os
import pickle
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO

from nnunet_unifiedloss._support.processes import ending, termination_as_exception
from nnunet_unifiedloss.sweep.display import Display
from nnunet_unifiedloss.sweep.jobs import Job
from nnunet_unifiedloss.sweep.runner import EXIT_BUSY
from nnunet_unifiedloss.sweep.status import (
    HOPELESS,
    Status,
    blocked,
    filesystem_clock,
    look,
)

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_TABLES = 2.0
SECONDS_BETWEEN_LOOKS_ELSEWHERE = 5.0
SECONDS_TO_STOP = 60.0
SECONDS_TO_STOP_AT_ONCE = 15.0


@dataclass(frozen=True)
class _Runner:
    """A process that carries a job out as long as its stdin stays open."""

    job: Job
    gpu: str | None
    process: subprocess.Popen[bytes]
    errors: IO[bytes]

    def end(self) -> None:
        """Tell the process to stop."""
        if self.process.stdin is not None:
            self.process.stdin.close()

    def last_words(self) -> str:
        """Return the last line that the process printed."""
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""


@dataclass
class LocalSweep:
    """A sweep on this computer.

    Attributes:
        jobs: All jobs, each after those that it requires.
        gpus: The GPUs to pin the jobs to; none for nnU-Net's own choice.
        parallel: Number of jobs that run at a time.
        display: The output.
    """

    jobs: Sequence[Job]
    gpus: Sequence[str]
    parallel: int
    display: Display
    settled: dict[str, Status] = field(default_factory=dict)
    _running: dict[str, _Runner] = field(default_factory=dict)
    _look_again: dict[str, float] = field(default_factory=dict)
    _began: float = field(default_factory=filesystem_clock)

    def run(self) -> list[Status]:
        """Run all jobs, each after those that it requires.

        Returns:
            The final status of each job.

        Raises:
            KeyboardInterrupt: The user has interrupted; no process of the sweep runs any more.
        """
        shown = 0.0
        now = filesystem_clock()
        before = (look(job, now) for job in self.jobs)
        self.settled |= {status.job.name: status for status in before if status.state == "done"}
        with termination_as_exception(), self.display:
            try:
                while len(self.settled) < len(self.jobs):
                    self._collect()
                    self._start()
                    if time.monotonic() - shown > SECONDS_BETWEEN_TABLES:
                        self.display.show(self._statuses())
                        shown = time.monotonic()
                    time.sleep(SECONDS_BETWEEN_LOOKS)
            except BaseException:
                self._stop()
                self.display.say("stopped; the same command continues from here")
                raise
        return [self.settled[job.name] for job in self.jobs]

    def _statuses(self) -> list[Status]:
        """Return the final status of settled jobs and the present one of running jobs."""
        now = filesystem_clock()
        return [
            self.settled.get(job.name)
            or (look(job, now) if job.name in self._running else Status(job, "not started"))
            for job in self.jobs
        ]

    def _collect(self) -> None:
        """Settle the jobs that have ended."""
        for name, runner in list(self._running.items()):
            job, exit_status = runner.job, runner.process.poll()
            if exit_status is None:
                continue
            del self._running[name]
            runner.end()
            status = look(job, filesystem_clock())
            if (
                exit_status == EXIT_BUSY or status.state == "running"
            ):  # elsewhere, or without its runner
                self._look_again[name] = time.monotonic() + SECONDS_BETWEEN_LOOKS_ELSEWHERE
                continue
            if status.state not in ("done", "failed"):
                error = f"ended without its results, {ending(exit_status)}{runner.last_words()}"
                status = Status(job, "failed", status.progress, error=error, log=status.log)
            self._settle(status)

    def _start(self) -> None:
        """Start jobs whose requirements are done, up to the number that run at a time."""
        for job in self.jobs:
            if job.name in self.settled or job.name in self._running:
                continue
            before = [self.settled.get(other.name) for other in job.requires]
            hopeless = {status.job.name for status in before if status and status.state in HOPELESS}
            if hopeless:
                self._settle(blocked(Status(job, "not started"), hopeless))
            elif len(self._running) < self.parallel and all(before):
                self._start_one(job)

    def _start_one(self, job: Job) -> None:
        """Start a job, unless its outcome is known or another process carries it out."""
        if time.monotonic() < self._look_again.get(job.name, 0):
            return
        status = look(job, filesystem_clock())
        failed_meanwhile = status.state == "failed" and (status.ended or 0) > self._began
        if status.state in ("done", "unplanned") or failed_meanwhile:
            self._settle(status)
        elif status.state in ("running", "queued"):
            if job.name not in self._look_again:
                self.display.say(f"waiting: {job.name} runs elsewhere ({status.where})")
            self._look_again[job.name] = time.monotonic() + SECONDS_BETWEEN_LOOKS_ELSEWHERE
        else:
            self._launch(job)

    def _launch(self, job: Job) -> None:
        """Start the process that carries a job out."""
        try:
            command = shlex.join(job.command())
        except ValueError as error:
            self._settle(Status(job, "failed", error=str(error)))
            return
        gpu = min(self.gpus, key=self._load().__getitem__, default=None)
        self._running[job.name] = _start_runner(job, gpu)
        pinned = f"CUDA_VISIBLE_DEVICES={gpu} " if gpu is not None else ""
        self.display.say(f"started: {pinned}{command}")

    def _load(self) -> Counter[str | None]:
        """Return the number of running jobs of each GPU."""
        return Counter(runner.gpu for runner in self._running.values())

    def _settle(self, status: Status) -> None:
        self.settled[status.job.name] = status
        self.display.settled(status)

    def _stop(self) -> None:
        """Stop all runners and wait for them."""
        if self._running:
            self.display.say("stopping the running jobs, which may take some seconds …")
        for runner in self._running.values():
            runner.end()
        runners = [runner.process for runner in self._running.values()]
        try:
            _wait(runners, SECONDS_TO_STOP)
        except BaseException:  # interrupted again: do not wait for a checkpoint to be written
            for process in runners:
                process.terminate()
            _wait(runners, SECONDS_TO_STOP_AT_ONCE)
            raise
        finally:
            for process in runners:
                process.kill()


def _wait(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Wait until all processes have ended, or the time is over."""
    end = time.monotonic() + seconds
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))


def _start_runner(job: Job, gpu: str | None) -> _Runner:
    errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the runner)
    process = subprocess.Popen(
        [sys.executable, "-m", "nnunet_unifiedloss.sweep.runner"],
        stdin=subprocess.PIPE,
        stdout=errors,
        stderr=errors,
        env=os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}),
        start_new_session=True,
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has failed at once, as its exit status says
        pickle.dump(job, process.stdin)
        process.stdin.flush()
    return _Runner(job, gpu, process, errors)
