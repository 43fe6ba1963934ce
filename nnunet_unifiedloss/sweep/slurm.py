"""Running the jobs of a sweep on a Slurm cluster, submitted with submitit.

Slurm does the scheduling: jobs without open requirements form one array, and those that wait for
others form arrays with a dependency.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import Checkpointable, clean_env

from nnunet_unifiedloss._support.files import write_atomically
from nnunet_unifiedloss.results.trainings import nnunet_folder
from nnunet_unifiedloss.sweep.attempts import SECONDS_BETWEEN_HEARTBEATS, last_attempt
from nnunet_unifiedloss.sweep.display import Display
from nnunet_unifiedloss.sweep.jobs import RECORDS, Job, Preparation
from nnunet_unifiedloss.sweep.runner import carry_out
from nnunet_unifiedloss.sweep.status import (
    HOPELESS,
    SUBMISSION,
    Status,
    blocked,
    filesystem_clock,
    look,
    read_queue,
    submission,
)

SECONDS_BETWEEN_LOOKS = 10.0
LOOKS_TO_BE_GONE = 2  # a file server may show results some seconds after the job has left the queue
LARGEST_ARRAY = 1000  # Slurm's default MaxArraySize allows 1001
DEFAULT_MINUTES = 24 * 60
DEFAULT_TIMEOUTS = 100
FOR_PREPARATION = "prepare_"


class ClusterJob(Checkpointable):
    """The function that a node runs for a job, again after each requeue.

    submitit requeues it when Slurm announces the time limit, and Slurm itself after a preemption;
    nnU-Net's files tell how to continue.
    """

    def __call__(self, job: Job) -> None:
        """Carry out the job, unless another process does."""
        while not carry_out(job, shielded=True):
            before = last_attempt(job.records)
            heartbeat = before.last_heartbeat() if before else None
            time.sleep(2 * SECONDS_BETWEEN_HEARTBEATS)
            after = last_attempt(job.records)
            if after is None or after != before or after.last_heartbeat() != heartbeat:
                return  # it really runs elsewhere and did not die with its node


@dataclass
class SlurmSweep:
    """A sweep on a Slurm cluster.

    Attributes:
        jobs: All jobs, each after those that it requires.
        options: ``key=value`` for sbatch.
        parallel: Number of elements of an array that run at a time; submitit's default if None.
        display: The output.
    """

    jobs: Sequence[Job]
    options: Sequence[str]
    parallel: int | None
    display: Display
    settled: dict[str, Status] = field(default_factory=dict)
    _submitted: dict[str, str] = field(default_factory=dict)
    _gone: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _began: float = field(default_factory=filesystem_clock)

    def run(self) -> list[Status]:
        """Submit all jobs and wait until they have left the queue.

        Returns:
            The final status of each job.

        Raises:
            ValueError: An option is malformed.
            RuntimeError: There is no Slurm, or it refuses the jobs.
        """
        parse_options(self.options)
        with self.display:
            try:
                while len(self.settled) < len(self.jobs):
                    statuses = self._look()
                    self._submit(statuses)
                    self.display.show(statuses)
                    if len(self.settled) < len(self.jobs):
                        time.sleep(SECONDS_BETWEEN_LOOKS)
            except KeyboardInterrupt:
                numbers = sorted({number.split("_")[0] for number in self._submitted.values()})
                self.display.say(f"the jobs stay in Slurm's queue; scancel {' '.join(numbers)}")
                raise
        return [self.settled[job.name] for job in self.jobs]

    def _look(self) -> list[Status]:
        """Return the status of each job, and settle those that have ended."""
        queue, now = read_queue(), filesystem_clock()
        statuses = []
        for job in self.jobs:
            status = self.settled.get(job.name) or look(job, now, queue)
            if job.name not in self.settled:
                if status.state == "queued" and (number := submission(job)):
                    self._submitted[job.name] = number
                if (end := self._end(status, queue)) is not None:
                    self.settled[job.name] = status = end
                    self.display.settled(end)
            statuses.append(status)
        return statuses

    def _end(self, status: Status, queue: dict[str, str] | None) -> Status | None:
        """Return the final status of a job; None while it waits or runs."""
        job = status.job
        if status.state in ("done", "unplanned"):
            return status
        if status.state == "running":
            return None
        before = [self.settled.get(other.name) for other in job.requires]
        if hopeless := {other.job.name for other in before if other and other.state in HOPELESS}:
            return blocked(status, hopeless)
        number = self._submitted.get(job.name)
        if number is None or queue is None or number in queue:
            return None
        self._gone[job.name] += 1
        if self._gone[job.name] < LOOKS_TO_BE_GONE:
            return None
        if status.state == "failed" and (status.ended or 0) > self._began:
            return status
        error = f"Slurm job {number} ended without its results, see {_folder()}/{number}_0_log.err"
        return Status(job, "failed", status.progress, error=error, log=status.log)

    def _submit(self, statuses: Sequence[Status]) -> None:
        """Submit the jobs whose requirements are done or submitted."""
        waiting = [
            status.job
            for status in statuses
            if status.state not in ("running", "queued")
            and status.job.name not in self._submitted
            and status.job.name not in self.settled
        ]
        while True:
            known = {*self.settled, *self._submitted}
            arrays: dict[tuple[bool, tuple[str, ...]], list[Job]] = defaultdict(list)
            for job in waiting:
                names = [other.name for other in job.requires]
                if job.name not in known and known.issuperset(names):
                    numbers = {self._submitted[n] for n in names if n not in self.settled}
                    arrays[isinstance(job, Preparation), tuple(sorted(numbers))].append(job)
            if not arrays:
                return
            for (prepares, numbers_before), jobs in arrays.items():
                for start in range(0, len(jobs), LARGEST_ARRAY):
                    part = jobs[start : start + LARGEST_ARRAY]
                    self._submit_array(part, numbers_before, prepares)

    def _submit_array(self, jobs: list[Job], before: tuple[str, ...], prepares: bool) -> None:
        """Submit jobs with the same requirements as one array."""
        parameters, timeouts = parse_options(self.options, prepares=prepares)
        if before:
            extra = parameters.setdefault("additional_parameters", {})
            # otherwise an array whose requirement has failed would stay in the queue for ever
            extra |= {"dependency": f"afterok:{':'.join(before)}", "kill-on-invalid-dep": "yes"}
        if self.parallel is not None:
            parameters["array_parallelism"] = self.parallel
        executor = SlurmExecutor(_folder(), max_num_timeout=timeouts)
        executor.update_parameters(**parameters)
        try:
            with _outside_of_any_job():
                submitted = executor.map_array(ClusterJob(), jobs)  # type: ignore[no-untyped-call]
        except (FailedJobError, FailedSubmissionError, subprocess.SubprocessError) as error:
            raise RuntimeError(f"Slurm refuses the jobs: {error}") from error
        for job, entry in zip(jobs, submitted, strict=True):
            self._submitted[job.name] = entry.job_id
            job.records.mkdir(parents=True, exist_ok=True)
            write_atomically(job.records / SUBMISSION, f"{entry.job_id}\n")
        number = submitted[0].job_id.partition("_")[0]
        self.display.say(f"submitted: Slurm job {number} with {len(jobs)} of the sweep's jobs")


@contextlib.contextmanager
def _outside_of_any_job() -> Iterator[None]:
    """Hide the variables of a Slurm job, as the sweep itself may run in one."""
    kept = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with clean_env():
        os.environ.update(kept)
        yield


def parse_options(options: Sequence[str], *, prepares: bool = False) -> tuple[dict[str, Any], int]:
    """Convert options of sbatch to submitit's parameters.

    Args:
        options: ``key=value``; a key that begins with ``prepare_`` is for preparations only, and an
            empty value removes the option.
        prepares: True for the options of a preparation.

    Returns:
        The parameters, and the number of times that a job may reach its time limit.

    Raises:
        ValueError: An option has no ``=``, or its value is invalid.

    Example:
        >>> parse_options(["partition=gpu", "time=1-12:00:00", "reservation=mine"])[0]
        {'time': 2160, 'partition': 'gpu', 'additional_parameters': {'reservation': 'mine'}}
        >>> parse_options(["gres=gpu:1", "prepare_gres=", "time=60"], prepares=True)[0]
        {'time': 60}
    """
    chosen: dict[str, str] = {}
    for option in sorted(options, key=lambda option: option.startswith(FOR_PREPARATION)):
        key, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"--slurm {option}: expected key=value, as partition=gpu")
        key = key.lstrip("-").replace("-", "_")
        if not key.startswith(FOR_PREPARATION) or prepares:
            chosen[key.removeprefix(FOR_PREPARATION)] = value
    chosen = {key: value for key, value in chosen.items() if value}
    timeouts = chosen.pop("max_num_timeout", str(DEFAULT_TIMEOUTS))
    if not timeouts.isdecimal():
        raise ValueError(f"--slurm max_num_timeout={timeouts}: expected a whole number")
    parameters: dict[str, Any] = {"time": minutes(chosen.pop("time", str(DEFAULT_MINUTES)))}
    for key, value in chosen.items():
        if key in ("setup", "teardown", "srun_args"):
            parameters[key] = [value]
        elif key in SlurmExecutor._valid_parameters():
            parameters[key] = int(value) if value.isdecimal() else value
        else:
            extra = parameters.setdefault("additional_parameters", {})
            extra[key.replace("_", "-")] = value
    return parameters, int(timeouts)


def minutes(text: str) -> int:
    """Convert a duration in any of Slurm's formats to minutes.

    Raises:
        ValueError: The text has none of these formats.

    Example:
        >>> minutes("90"), minutes("90:30"), minutes("24:00:00"), minutes("2-12"), minutes("1-0:30")
        (90, 91, 1440, 3600, 1470)
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if found is None:
        raise ValueError(f"--slurm time={text}: expected minutes, or [days-]hours:minutes:seconds")
    days, *rest = found.groups()
    numbers = [int(part) for part in rest if part is not None]
    if days is None and len(numbers) < 3:
        numbers.insert(0, 0)  # without days, one number means minutes, two minutes and seconds
    hours, mins, seconds = (*numbers, 0, 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60) + mins + math.ceil(seconds / 60)


def _folder() -> str:
    return str(nnunet_folder("nnUNet_results") / RECORDS / "slurm")
