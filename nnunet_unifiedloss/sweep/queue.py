"""What is in Slurm's queue."""

from __future__ import annotations

import shutil
import subprocess

SECONDS_FOR_SQUEUE = 60.0


def read_queue() -> dict[str, str] | None:
    """The states of this user's jobs in Slurm's queue.

    Returns:
        ``PENDING``, ``RUNNING``, … by the number of the job, as ``12`` or ``12_3``; None if there
        is no Slurm here, or it does not answer.
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
