"""The status of a sweep's jobs, from nnU-Net's files and from the attempts at the jobs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nnunet_unifiedloss.results.trainings import nnunet_folder, state, validation_dice
from nnunet_unifiedloss.sweep.attempts import (
    SECONDS_BETWEEN_HEARTBEATS,
    Attempt,
    clock,
    last_attempt,
)
from nnunet_unifiedloss.sweep.jobs import RECORDS, Job, TrainingJob
from nnunet_unifiedloss.sweep.progress import Progress, read_progress

SECONDS_FOR_SQUEUE = 60.0
SUBMISSION = "slurm_job"
BY_HAND = "by hand"

State = Literal[
    "done",
    "running",
    "queued",
    "failed",
    "blocked",
    "interrupted",
    "not started",
    "unplanned",
]
# a job cannot be done if it requires one in these states
HOPELESS = frozenset({"failed", "blocked"})


@dataclass(frozen=True)
class Status:
    """The status of one job.

    Attributes:
        job: The job.
        state: ``unplanned`` if nnU-Net's plans of this data set have no such configuration;
            ``blocked`` if a required job has failed.
        progress: The progress in nnU-Net's training log.
        dice: nnU-Net's mean validation Dice, when the job is done.
        where: The computer that the job runs on, or its number in Slurm's queue, or ``by hand`` if
            no sweep started it but its log has grown recently.
        since: Start of the running attempt, in seconds since 1970.
        ended: End of the last attempt.
        error: Reason of the failure, in one line.
        log: The output of the last attempt.
    """

    job: Job
    state: State
    progress: Progress | None = None
    dice: float | None = None
    where: str | None = None
    since: float | None = None
    ended: float | None = None
    error: str | None = None
    log: Path | None = None


def look(job: Job, now: float, queue: Mapping[str, str] | None = None) -> Status:
    """Return the status of a job.

    Args:
        job: The job.
        now: The time by :func:`filesystem_clock`.
        queue: The states of :func:`read_queue`.
    """
    try:
        return _look(job, now, queue or {})
    except (OSError, ValueError) as error:  # an unreadable folder must not hide the other jobs
        return Status(job, "failed", error=f"cannot be read: {error}")


def _look(job: Job, now: float, queue: Mapping[str, str]) -> Status:
    folder = job.folder if isinstance(job, TrainingJob) else None
    if _holds(job.is_done):
        return Status(job, "done", dice=validation_dice(folder) if folder else None)
    last = last_attempt(job.records)
    progress = read_progress(folder) if folder else None
    log = last.log if last is not None and last.log.is_file() else None
    if last is not None and last.is_alive(now):
        return Status(job, "running", progress, where=last.host, since=last.began, log=log)
    if progress is not None and _grows_without_us(progress, last, now):
        return Status(job, "running", progress, where=BY_HAND, since=progress.changed)
    if (number := submission(job)) is not None and number in queue:
        return Status(job, "queued", progress, where=f"Slurm job {number}")
    if last is not None and last.outcome == "failed":
        return Status(job, "failed", progress, ended=last.ended, error=last.error, log=log)
    if _holds(lambda: not job.is_planned()):
        return Status(job, "unplanned")
    begun = folder is not None and state(folder) != "absent"
    return Status(job, "interrupted" if begun else "not started", progress, log=log)


def look_at_all(jobs: Iterable[Job], queue: Mapping[str, str] | None = None) -> list[Status]:
    """Return the status of all jobs; those that require a failed one are blocked.

    Args:
        jobs: The jobs, each after those that it requires.
        queue: The states of :func:`read_queue`.
    """
    now = filesystem_clock()
    statuses: list[Status] = []
    hopeless: set[str] = set()
    for job in jobs:
        status = look(job, now, queue)
        is_blocked = any(before.name in hopeless for before in job.requires)
        if is_blocked and status.state in ("not started", "interrupted", "failed"):
            status = blocked(status, hopeless)
        if status.state in HOPELESS:
            hopeless.add(job.name)
        statuses.append(status)
    return statuses


def blocked(status: Status, hopeless: set[str]) -> Status:
    """Return the status of a job that requires a failed one."""
    failed = [before.name for before in status.job.requires if before.name in hopeless]
    return Status(status.job, "blocked", status.progress, error=f"needs {', '.join(failed)}")


def filesystem_clock() -> float:
    """Return the time by the clock of the file server that holds the results."""
    return clock(nnunet_folder("nnUNet_results") / RECORDS)


def read_queue() -> dict[str, str] | None:
    """Read the states of this user's jobs from Slurm's queue.

    Returns:
        ``PENDING``, ``RUNNING``, … by the job's number, such as ``12`` or ``12_3``; None if there
        is no Slurm, or it does not answer.
    """
    if shutil.which("squeue") is None:
        return None
    command = ["squeue", "--noheader", "--array", "--me", "--format=%i|%T"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=SECONDS_FOR_SQUEUE
        )
    except (subprocess.SubprocessError, OSError):
        return None
    return dict(line.split("|", 1) for line in done.stdout.split())


def submission(job: Job) -> str | None:
    """Return Slurm's number of the last submission of a job."""
    try:
        return (job.records / SUBMISSION).read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None


def _holds(condition: Callable[[], bool]) -> bool:
    """Return a condition, or False while a file that it reads is being written."""
    try:
        return condition()
    except ValueError:
        return False


def _grows_without_us(progress: Progress, last: Attempt | None, now: float) -> bool:
    """Return True if the log of a training that no sweep runs has grown recently."""
    if (
        abs(now - progress.changed) > progress.patience
    ):  # a time in the future comes from a wrong clock
        return False
    if last is None:
        return True
    # lines that the last attempt wrote before its end do not count
    until = last.ended or last.last_heartbeat() + SECONDS_BETWEEN_HEARTBEATS
    return progress.changed > until + 5
