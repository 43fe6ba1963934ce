"""Attempts at a job: who runs it, who ran it and how it ended. A live attempt is the job's lock.

An attempt is a file with the next number, created exclusively (``O_EXCL``, which is atomic on NFS
too): of those who want to run a job at the same time, one succeeds. A number is never used again,
so taking over from a dead process neither deletes nor renames anything, and a slow contender cannot
mistake a new attempt for the dead one that it saw before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import getpass
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from nnunet_unifiedloss._support.files import write_atomically
from nnunet_unifiedloss.results.trainings import read_json

SECONDS_BETWEEN_HEARTBEATS = 30.0
# NFS may show the time of a heartbeat a minute late, and a busy server may miss some.
SECONDS_WITHOUT_HEARTBEAT = 300.0

Outcome = Literal["finished", "failed", "interrupted"]


@dataclass(frozen=True)
class Process:
    """A process that can be recognised: process numbers are used again, so the start counts too."""

    machine: str
    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> Process:
        """The running process of this number, on this machine."""
        import psutil

        return cls(this_machine(), pid, psutil.Process(pid).create_time())

    def is_alive(self) -> bool:
        """Whether it runs; to be asked on its own machine."""
        import psutil

        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < 2
            return bool(same and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False


@dataclass(frozen=True)
class Attempt:
    """What is known about an attempt, as its file says.

    Attributes:
        path: Its file.
        job: Name of the job.
        host: Name of the computer, for people.
        owner: The process that carries it out.
        child: nnU-Net's process, once it is started.
        slurm_job: Slurm's number of the job that it runs in, and how often that was requeued.
        began: When it began, in seconds since 1970.
        ended: When it ended.
        outcome: How it ended; without one it is running, or was killed.
        error: What went wrong, in one line.
    """

    path: Path
    job: str
    host: str
    owner: Process
    child: Process | None = None
    slurm_job: tuple[str, int] | None = None
    began: float = 0.0
    ended: float | None = None
    outcome: Outcome | None = None
    error: str | None = None

    @property
    def log(self) -> Path:
        """The output of the command."""
        return self.path.with_suffix(".log")

    def last_heartbeat(self) -> float:
        """When the owner last showed that it is alive, by the file server's clock."""
        return self.path.stat().st_mtime

    def is_alive(self, now: float) -> bool:
        """Whether it is still being carried out.

        Its own machine knows; from elsewhere it is taken for dead when its heartbeat has stopped.

        Args:
            now: The time by the file server's :func:`clock`.
        """
        if self.outcome is not None:
            return False
        if self.slurm_job is not None and (here := this_slurm_job()) is not None:
            (job, requeues), (job_here, requeues_here) = self.slurm_job, here
            if job == job_here and requeues < requeues_here:
                return False  # this is the job itself, after Slurm has killed and requeued it
        if self.owner.machine == this_machine():
            return any(process.is_alive() for process in (self.owner, self.child) if process)
        # one from the future was written while a clock was wrong
        return abs(now - self.last_heartbeat()) < SECONDS_WITHOUT_HEARTBEAT


class OwnAttempt:
    """An attempt that this process carries out; leaving the context ends it.

    Attributes:
        attempt: What its file says.
        lost: Somebody else has taken over, because no heartbeat came (a suspended computer, a file
            server out of reach): this process must stop.
    """

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.lost = False
        self._left = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def update(self, **changes: Any) -> None:  # noqa: ANN401 (the fields of Attempt)
        """Change what the file says."""
        self.attempt = dataclasses.replace(self.attempt, **changes)
        write_atomically(self.attempt.path, _as_json(self.attempt))

    def end(self, outcome: Outcome, error: str | None = None) -> None:
        """Write how it ended."""
        self.update(outcome=outcome, error=error, ended=clock(self.attempt.path.parent))

    def __enter__(self) -> OwnAttempt:
        self._heart.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()
        self._heart.join()
        if self.attempt.outcome is None:
            self.end("interrupted")

    def _beat(self) -> None:
        while not self._left.wait(SECONDS_BETWEEN_HEARTBEATS):
            with contextlib.suppress(OSError):
                os.utime(self.attempt.path)
                self.lost = _numbered(self.attempt.path.parent, _number(self.attempt) + 1).exists()


def begin(folder: Path, job: str) -> OwnAttempt | None:
    """Begin an attempt at a job.

    Args:
        folder: Where the job's attempts are.
        job: Its name.

    Returns:
        The attempt, or None if somebody else is carrying the job out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    last, now = last_attempt(folder), clock(folder)
    if last is not None and last.is_alive(now):
        return None
    path = _numbered(folder, 1 if last is None else _number(last) + 1)
    owner = Process.of(os.getpid())
    attempt = Attempt(path, job, platform.node(), owner, None, this_slurm_job(), began=now)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(_as_json(attempt))
    except FileExistsError:
        return None
    return OwnAttempt(attempt)


@contextlib.contextmanager
def alone(folder: Path, job: str) -> Iterator[None]:
    """Wait until nobody else is at it, and keep others waiting meanwhile."""
    while (attempt := begin(folder, job)) is None:
        time.sleep(1)
    with attempt:
        yield
        attempt.end("finished")


def last_attempt(folder: Path) -> Attempt | None:
    """The last attempt at a job, or None if there has been none."""
    try:
        numbers = [int(p.stem.removeprefix("attempt_")) for p in folder.glob("attempt_*.json")]
    except FileNotFoundError:
        return None
    if not numbers:
        return None
    path = _numbered(folder, max(numbers))
    try:
        content = read_json(path)
        owner, child, slurm_job = (content.pop(name) for name in ("owner", "child", "slurm_job"))
        return Attempt(
            path=path,
            owner=Process(**owner),
            child=Process(**child) if child else None,
            slurm_job=tuple(slurm_job) if slurm_job else None,
            **content,
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        # being written just now, or left empty by a computer that lost its power
        return Attempt(path, "", "", Process("", 0, 0.0), began=path.stat().st_mtime)


def clock(folder: Path) -> float:
    """The time by the clock of the file server, which also dates the heartbeats."""
    try:
        path = folder / ".clock"
        path.touch()
        return path.stat().st_mtime
    except OSError:  # somebody who may only read
        return time.time()


@functools.cache
def this_machine() -> str:
    """What must be the same for a process number to mean the same: start-up, container, user.

    Where the kernel hides the processes of others, nothing else tells that they are alive.
    """
    # not the name of the user: in a container the number may have none
    user = str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()
    parts = [platform.node(), user]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def this_slurm_job() -> tuple[str, int] | None:
    """Slurm's number of the job that this process runs in, and how often it was requeued."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    return (job, int(os.environ.get("SLURM_RESTART_COUNT", "0"))) if job else None


def _numbered(folder: Path, number: int) -> Path:
    return folder / f"attempt_{number:03d}.json"


def _number(attempt: Attempt) -> int:
    return int(attempt.path.stem.removeprefix("attempt_"))


def _as_json(attempt: Attempt) -> str:
    content = dataclasses.asdict(attempt)
    del content["path"]
    return json.dumps(content, indent=1) + "\n"
