"""Running nnU-Net's commands: log files, clean termination, error messages."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator

__all__ = [
    "console_script",
    "ending",
    "first_error",
    "running",
    "stop",
    "termination_as_exception",
]

SECONDS_TO_STOP = 10.0


def console_script(name: str) -> str:
    """Return the full path of a command: beside the running Python, otherwise on the PATH."""
    scripts = sysconfig.get_path("scripts")
    path = shutil.which(name, path=os.pathsep.join((scripts, os.environ.get("PATH", ""))))
    if path is None:
        raise RuntimeError(
            f"the command {name} is neither in {scripts} nor on the PATH; "
            "remedy: pip install nnunetv2, in the environment of nnunet-unifiedloss"
        )
    return path


@contextlib.contextmanager
def running(
    arguments: list[str], environment: dict[str, str], output: int, *, shielded: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command; leaving the context ends it and all of its processes.

    The output goes straight to the log file: workers of nnU-Net that outlive the command would hold
    a pipe open, and this process would wait for them.

    Args:
        arguments: The command.
        environment: Its environment variables.
        output: Descriptor of the log file.
        shielded: True on a Slurm node, where signals go to all processes of a job: the command
            ignores the one that announces the time limit, which submitit handles in this process.
            It cannot ignore SIGTERM, because nnU-Net ends its workers with it.
    """
    if shielded:
        arguments = ["sh", "-c", "trap '' USR2; exec \"$@\"", "sh", *arguments]
    with contextlib.nullcontext() if shielded else termination_as_exception():
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it started, first by SIGTERM, unless it has succeeded."""
    if process.poll() == 0:
        return
    if sys.platform == "win32":
        process.kill()
    else:
        # the group may have ended already, which macOS reports as a lack of permission
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGTERM)
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(SECONDS_TO_STOP)
            finally:
                os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def termination_as_exception() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that no command is left running.

    Ignored signals stay ignored, as ``nohup`` needs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    there = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    names = [name for name in there if signal.getsignal(getattr(signal, name)) != signal.SIG_IGN]
    previous = {name: signal.signal(getattr(signal, name), leave) for name in names}
    try:
        yield
    finally:
        for name, handler in previous.items():
            signal.signal(getattr(signal, name), handler)


def ending(status: int) -> str:
    """Describe the exit status of a command that failed.

    Example:
        >>> ending(3), ending(-9)
        ('failed with exit status 3', 'was killed, as happens when memory runs out')
    """
    if status >= 0:
        return f"failed with exit status {status}"
    name = signal.Signals(-status).name
    if name == "SIGKILL":
        return "was killed, as happens when memory runs out"
    return f"was ended by the signal {name}"


def first_error(output: str) -> str | None:
    r"""Return the first exception in the output of a command, in one line.

    The end of the output may be full of messages from nnU-Net's workers that follow from it.

    Example:
        >>> first_error("Traceback (most recent call last):\n  File ...\nKeyError: 'a'\nmore")
        "KeyError: 'a'"
    """
    found = re.search(r"^Traceback .*\n(?:[ \t].*\n|\n)*(\S.*)", output, re.MULTILINE)
    return found[1] if found else None
