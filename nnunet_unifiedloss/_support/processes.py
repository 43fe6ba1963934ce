"""Running nnU-Net's commands: output in a log file, clean ends, what went wrong."""

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
    """Full path of a command: the one of the running Python before any on the PATH."""
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
    """Start the command; on leaving, nothing of it is left.

    Its output goes straight to the log file: workers of nnU-Net that outlive it would hold a pipe
    open, and this process would wait for them.

    Args:
        arguments: The command.
        environment: Its environment variables.
        output: Descriptor of the log file.
        shielded: Slurm sends its signals to all processes of a job: the command is to ignore the
            one that submitit asks for before the time is over, and this process, whose handlers
            stay as they are, decides what to do. SIGTERM cannot be ignored, as nnU-Net ends its
            workers with it.
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
    """End the process and all that it started, gently first, unless it has ended well."""
    if process.poll() == 0:
        return
    if sys.platform == "win32":
        process.kill()
    else:
        # The group may be gone already, which macOS reports as a lack of permission.
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
    """Turn a signal to end into an exception, so that the command is not left running alone.

    What is ignored stays ignored: that is how ``nohup`` works.
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
    """How a command ended that did not succeed.

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
    r"""The first exception that a command printed, in one line.

    What nnU-Net's workers say after it died fills the end of the output, so the end is not all.

    Example:
        >>> first_error("Traceback (most recent call last):\n  File ...\nKeyError: 'a'\nmore")
        "KeyError: 'a'"
    """
    found = re.search(r"^Traceback .*\n(?:[ \t].*\n|\n)*(\S.*)", output, re.MULTILINE)
    return found[1] if found else None
