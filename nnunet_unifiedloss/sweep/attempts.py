"""Attempts at a job: their process, log and outcome. A live attempt is the job's lock.

Locks of the operating system are not enough: on many clusters ``flock`` is valid on one node only
(NFS with ``nolock``, Lustre with ``localflock``, BeeGFS without global locks), so two nodes would
train the same fold without an error. Creating a file exclusively (``O_EXCL``) is atomic there too,
so an attempt is a file with the next number. A number is never used again: taking over from a dead
process deletes nothing, and a slow contender cannot mistake a new attempt for an old one.
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
from typing import Any, Literal

from nnunet_unifiedloss._support.files import write_atomically
from nnunet_unifiedloss.results.trainings import read_json

SECONDS_BETWEEN_HEARTBEATS = 30.0
# NFS may show a heartbeat a minute late, and a busy server may miss some
SECONDS_WITHOUT_HEARTBEAT = 300.0

Outcome = Literal["finished", "failed", "interrupted"]


@dataclass(frozen=True)
class Process:
    """A process, identified by its start time too, because process numbers are reused."""

    machine: str
    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> Process:
        """Return the running process with this number on this machine."""
        import psutil

        return cls(this_machine(), pid, psutil.Process(pid).create_time())

    def is_alive(self) -> bool:
        """Return True if the process runs; only valid on its own machine."""
        import psutil

        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < 2
            return bool(same and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False


@dataclass(frozen=True)
class Attempt:
    """The content of an attempt's file.

    Attributes:
        path: The file.
        job: Name of the job.
        host: Name of the computer, for people.
        owner: The process that carries the attempt out.
        child: nnU-Net's process, once it has started.
        slurm_job: Number of the Slurm job around it, and the number of its requeues.
        began: Start in seconds since 1970.
        ended: End in seconds since 1970.
        outcome: The outcome; None while the attempt runs, and for ever if it was killed.
        error: The error in one line.
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

    @property
    def successor(self) -> Path:
        """The file of the next attempt, which exists once another process has taken over."""
        return _numbered(self.path.parent, _number(self.path) + 1)

    def last_heartbeat(self) -> float:
        """Return the time of the owner's last heartbeat, by the file server's clock."""
        return self.path.stat().st_mtime

    def is_alive(self, now: float) -> bool:
        """Return True if the attempt is still being carried out.

        On its own machine its processes tell, elsewhere its heartbeat.

        Args:
            now: The time by the file server's :func:`clock`.
        """
        if self.outcome is not None:
            return False
        if self.slurm_job is not None and (here := this_slurm_job()) is not None:
            (job, requeues), (job_here, requeues_here) = self.slurm_job, here
            if job == job_here and requeues < requeues_here:
                return False  # Slurm has killed the attempt and requeued its job, which is this one
        if self.owner.machine == this_machine():
            return any(process.is_alive() for process in (self.owner, self.child) if process)
        # a heartbeat from the future was written while a clock was wrong
        return abs(now - self.last_heartbeat()) < SECONDS_WITHOUT_HEARTBEAT


class OwnAttempt:
    """An attempt that this process carries out; leaving the context ends it.

    Attributes:
        attempt: The content of its file.
        lost: True once another process has taken over, because heartbeats were missing (a suspended
            computer, an unreachable file server): this process must stop.
    """

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.lost = False
        self._left = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def update(self, **changes: Any) -> None:  # noqa: ANN401 (the fields of Attempt)
        """Change fields of the attempt in its file."""
        self.attempt = dataclasses.replace(self.attempt, **changes)
        write_atomically(self.attempt.path, _as_json(self.attempt))

    def end(self, outcome: Outcome, error: str | None = None) -> None:
        """Write the outcome."""
        self.update(outcome=outcome, error=error, ended=clock(self.attempt.path.parent))

    def __enter__(self) -> OwnAttempt:
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._heart.join()
        if self.attempt.outcome is None:
            self.end("interrupted")

    def _beat(self) -> None:
        while not self._left.wait(SECONDS_BETWEEN_HEARTBEATS):
            with contextlib.suppress(OSError):
                os.utime(self.attempt.path)
                self.lost = self.attempt.successor.exists()


def begin(folder: Path, job: str) -> OwnAttempt | None:
    """Begin an attempt at a job.

    Args:
        folder: The folder of the job's attempts.
        job: Name of the job.

    Returns:
        The attempt, or None if another process is carrying the job out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    last, now = last_attempt(folder), clock(folder)
    if last is not None and last.is_alive(now):
        return None
    path = last.successor if last is not None else _numbered(folder, 1)
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
    """Hold a lock: wait until no other process holds it, and keep others waiting."""
    while (attempt := begin(folder, job)) is None:
        time.sleep(1)
    with attempt:
        yield
        attempt.end("finished")


def last_attempt(folder: Path) -> Attempt | None:
    """Return the last attempt at a job, or None if there is none."""
    try:
        path = max(folder.glob("attempt_*.json"), key=_number, default=None)
    except FileNotFoundError:
        return None
    if path is None:
        return None
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
        # it is being written just now, or was left empty by a power failure
        return Attempt(path, "", "", Process("", 0, 0.0), began=path.stat().st_mtime)


def clock(folder: Path) -> float:
    """Return the time by the clock of the file server, which also dates the heartbeats."""
    try:
        path = folder / ".clock"
        path.touch()
        return path.stat().st_mtime
    except OSError:  # the user may only read
        return time.time()


@functools.cache
def this_machine() -> str:
    """Return what makes process numbers comparable: host, user, start-up and container.

    The user counts, because a kernel may hide the processes of other users.
    """
    # in a container the user may have a number without a name
    user = str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()
    parts = [platform.node(), user]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def this_slurm_job() -> tuple[str, int] | None:
    """Return the number of the Slurm job around this process and of its requeues."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    return (job, int(os.environ.get("SLURM_RESTART_COUNT", "0"))) if job else None


def _numbered(folder: Path, number: int) -> Path:
    return folder / f"attempt_{number:03d}.json"


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("attempt_"))


def _as_json(attempt: Attempt) -> str:
    content = dataclasses.asdict(attempt)
    del content["path"]
    return json.dumps(content, indent=1) + "\n"
