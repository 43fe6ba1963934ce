"""Carrying out one job, on this computer or on a node of a cluster.

As a program (``python -m nnunet_unifiedloss.sweep.runner``) it reads the pickled job from stdin and
stops when stdin is closed, so that no training outlives a sweep that is killed.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shlex
import signal
import subprocess
import sys
import threading
import time

from nnunet_unifiedloss._support.processes import (
    console_script,
    ending,
    first_error,
    running,
    termination_as_exception,
)
from nnunet_unifiedloss.sweep.attempts import OwnAttempt, Process, alone, begin
from nnunet_unifiedloss.sweep.jobs import Job
from nnunet_unifiedloss.sweep.status import filesystem_clock, look

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_SAVE = 30.0
SECONDS_OF_GRACE = 3600.0
EXIT_BUSY = 75  # "try again later" of sysexits.h


class JobFailedError(RuntimeError):
    """nnU-Net's command failed, or left no complete results."""


def carry_out(job: Job, *, shielded: bool = False) -> bool:
    """Carry out a job unless it is done.

    Args:
        job: The job.
        shielded: See :func:`~nnunet_unifiedloss._support.processes.running`.

    Returns:
        True if the job is done now; False if another process carries it out.

    Raises:
        JobFailedError: The job failed; the message is one line, the rest is in the attempt's log.
    """
    if look(job, filesystem_clock()).state == "running":
        return False
    own = begin(job.records, job.name)
    if own is None:  # another process was faster
        return False
    with own:
        try:
            _run_what_is_missing(job, own, shielded)
        except Exception as error:
            text = str(error) if isinstance(error, (JobFailedError, ValueError)) else repr(error)
            own.end("failed", text)
            raise JobFailedError(text) from error
        own.end("finished")
    return True


def _run_what_is_missing(job: Job, own: OwnAttempt, shielded: bool) -> None:
    if job.is_done():
        return
    waiting = [
        before.name for before in job.requires if before.is_planned() and not before.is_done()
    ]
    if waiting:
        raise JobFailedError(f"these jobs have to be done first: {', '.join(waiting)}")
    with contextlib.ExitStack() as shared:
        if job.shared is not None:
            shared.enter_context(alone(job.shared, job.name))
        job.tidy()
        command = job.command()
        status = _run(job, command, own, shared, shielded)
    if shielded and status == -signal.SIGTERM:
        # Slurm has preempted, requeued or cancelled the job and will kill this process; a job that
        # ends by itself before that is not requeued.
        time.sleep(SECONDS_OF_GRACE)
    output = own.attempt.log.read_text(encoding="utf-8", errors="replace")
    if status != 0:
        raise JobFailedError(first_error(output) or _last_line(output) or ending(status))
    if not job.is_done():
        raise JobFailedError(f"{command[0]} ended without its results")


def _run(
    job: Job, command: list[str], own: OwnAttempt, shared: contextlib.ExitStack, shielded: bool
) -> int:
    """Run the command to its end and return its exit status."""
    # Python would otherwise hold back output that goes to a file
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    arguments = [console_script(command[0]), *command[1:]]
    with own.attempt.log.open("w", encoding="utf-8") as output:
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
        pinned = f"CUDA_VISIBLE_DEVICES={gpu} " if gpu else ""
        print(f"{pinned}{shlex.join(command)}", file=output, flush=True)
        with running(arguments, environment, output.fileno(), shielded=shielded) as process:
            own.update(child=Process.of(process.pid))
            try:
                _wait(job, process, own, shared)
            except BaseException:
                _let_it_save(job)
                raise
    return process.returncode


def _wait(
    job: Job, process: subprocess.Popen[bytes], own: OwnAttempt, shared: contextlib.ExitStack
) -> None:
    while process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_BETWEEN_LOOKS)
        if own.lost:
            raise JobFailedError("no heartbeat was written, and another process has taken over")
        if job.shared is None:  # the shared files are written: others may continue
            shared.close()


def _let_it_save(job: Job) -> None:
    """Wait for a checkpoint: nnU-Net writes in place, so stopping now would lose the last one."""
    end = time.monotonic() + SECONDS_TO_SAVE
    while job.is_saving() and time.monotonic() < end:
        time.sleep(0.1)


def _last_line(output: str) -> str | None:
    lines = [line for line in output.splitlines()[1:] if line.strip()]
    return lines[-1].strip() if lines else None


def main() -> int:
    """Carry out the job that is read from stdin."""
    job: Job = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with termination_as_exception():
        try:
            return 0 if carry_out(job) else EXIT_BUSY
        except JobFailedError:
            return 1


def _end_with_parent() -> None:
    with contextlib.suppress(OSError):
        # not sys.stdin: Python aborts if a thread still waits in it when the program ends
        while os.read(sys.stdin.fileno(), 1024):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
