"""How far the jobs of a sweep are: what nnU-Net left on disk, and who is at them."""

from __future__ import annotations

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
# a job that depends on one of these cannot be done; nor can one that depends on such a job
HOPELESS = frozenset({"failed", "blocked"})


@dataclass(frozen=True)
class Status:
    """How far one job is.

    Attributes:
        job: The job.
        state: ``unplanned``: nnU-Net's plans of this data set have no such configuration;
            ``blocked``: a job that has to be done before has failed.
        progress: What nnU-Net's training log says.
        dice: nnU-Net's mean validation Dice, when it is done.
        where: The computer that it runs on, or its number in Slurm's queue, or ``by hand`` when no
            sweep started it: its log has grown lately.
        since: When it was started there, in seconds since 1970.
        ended: When the last attempt ended.
        error: Why it failed, in one line.
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
    """How far a job is.

    Args:
        job: The job.
        now: The time by the file server's clock, see :func:`look_at_all`.
        queue: The state of each job in Slurm's queue by its number.
    """
    try:
        return _look(job, now, queue or {})
    except (OSError, ValueError) as error:  # one folder out of reach must not end all
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
    """How far all jobs are, with those blocked that wait for one that failed.

    Args:
        jobs: The jobs, each after those that it requires.
        queue: See :func:`look`.
    """
    now = filesystem_clock()
    statuses: list[Status] = []
    hopeless: set[str] = set()
    for job in jobs:
        status = look(job, now, queue)
        waits_in_vain = any(before.name in hopeless for before in job.requires)
        if waits_in_vain and status.state in ("not started", "interrupted", "failed"):
            status = blocked(status, hopeless)
        if status.state in HOPELESS:
            hopeless.add(job.name)
        statuses.append(status)
    return statuses


def blocked(status: Status, hopeless: set[str]) -> Status:
    """The status of a job that waits in vain."""
    failed = [before.name for before in status.job.requires if before.name in hopeless]
    return Status(status.job, "blocked", status.progress, error=f"needs {', '.join(failed)}")


def filesystem_clock() -> float:
    """The time by the clock of the file server with the results."""
    return clock(nnunet_folder("nnUNet_results") / RECORDS)


def submission(job: Job) -> str | None:
    """The number that Slurm gave to a job when it was last submitted."""
    try:
        return (job.records / SUBMISSION).read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None


def _holds(condition: Callable[[], bool]) -> bool:
    """Whether something is so; a file that is cut short is just being written."""
    try:
        return condition()
    except ValueError:
        return False


def _grows_without_us(progress: Progress, last: Attempt | None, now: float) -> bool:
    """Whether a training that no sweep is at has written to its log lately."""
    if abs(now - progress.changed) > progress.patience:  # the future: a clock was wrong
        return False
    if last is None:
        return True
    # what the last attempt wrote before it ended or was killed is no sign of life
    until = last.ended or last.last_heartbeat() + SECONDS_BETWEEN_HEARTBEATS
    return progress.changed > until + 5
