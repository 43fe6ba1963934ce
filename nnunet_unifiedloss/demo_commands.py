"""Running nnU-Net's commands for the demo: output in a log file, live progress, clean ends."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

__all__ = ["run_command", "say"]

LOG_LINES_SHOWN = 15
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_STOP = 10.0


def run_command(
    command: Sequence[str],
    log: Path,
    *,
    settings: Mapping[str, str],
    title: str,
    epochs: int | None = None,
    console: Console,
) -> None:
    """Run one of nnU-Net's commands to its end, showing how far it is.

    Whatever ends the wait (Ctrl-C, SIGTERM, an error) ends the command and its workers too.

    Args:
        command: name of the console script, and its arguments.
        log: file for the command's output; an earlier one is replaced.
        settings: environment variables, in addition to the present ones.
        title: what the progress line calls it.
        epochs: number of epochs if the command trains.
        console: where the progress is shown.

    Raises:
        RuntimeError: if the command is not installed or fails.
    """
    arguments = [_console_script(command[0]), *command[1:]]
    # Python would otherwise hold back output that goes to a file, and the progress with it.
    environment = {**os.environ, **settings, "PYTHONUNBUFFERED": "1"}
    log.parent.mkdir(parents=True, exist_ok=True)
    shown = console.is_terminal
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with (
        log.open("w", encoding="utf-8") as output,
        Progress(*columns, console=console, transient=True, disable=not shown) as progress,
        _running(arguments, environment, output.fileno()) as process,
    ):
        task = progress.add_task(title, total=epochs)
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS_BETWEEN_LOOKS)
            if epochs is not None:
                _show_epoch(progress, task, title, epochs, _read(log))
    if process.returncode != 0:
        raise RuntimeError(_failure(command, process.returncode, log))


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print without markup and without folding, so that paths and commands can be copied."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _console_script(name: str) -> str:
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
def _running(
    arguments: list[str], environment: dict[str, str], output: int
) -> Iterator[subprocess.Popen[bytes]]:
    """Start the command; on leaving, nothing of it is left.

    Its output goes straight to the log file: workers of nnU-Net that outlive it would hold a pipe
    open, and this process would wait for them.
    """
    with _termination_as_exception():
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
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
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
def _termination_as_exception() -> Iterator[None]:
    """Turn a signal to end into an exception, so that the command is not left running alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    previous = {name: signal.signal(getattr(signal, name), leave) for name in names}
    try:
        yield
    finally:
        for name, handler in previous.items():
            signal.signal(getattr(signal, name), handler)


def _show_epoch(progress: Progress, task: TaskID, title: str, epochs: int, output: str) -> None:
    started = re.findall(r": Epoch (\d+)\s*$", output, re.MULTILINE)
    if "Training done." in output:
        progress.update(task, completed=epochs, description=f"{title}, validation")
    elif started:
        epoch = int(started[-1])
        description = f"{title}, epoch {epoch + 1} of {epochs}"
        progress.update(task, completed=epoch, description=description)


def _read(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


def _failure(command: Sequence[str], status: int, log: Path) -> str:
    output = _read(log)
    # What nnU-Net's workers say after it died fills the end of the output, so the end is not all.
    first = re.search(r"^Traceback .*\n(?:[ \t].*\n|\n)*(\S.*)", output, re.MULTILINE)
    lines = [line for line in output.splitlines() if line.strip()][-LOG_LINES_SHOWN:]
    return "\n".join(
        (
            f"this command {_ending(status)}:",
            f"  {shlex.join(command)}",
            *((f"The first error in its output: {first[1]}",) if first else ()),
            "The last lines of its output:",
            *(f"  {line}" for line in lines),
            f"All of it is in {log}",
            "Mend the cause and run the demo again: it goes on from here.",
        )
    )


def _ending(status: int) -> str:
    if status >= 0:
        return f"failed with exit status {status}"
    name = signal.Signals(-status).name
    if name == "SIGKILL":
        return "was killed, as happens when memory runs out"
    return f"was ended by the signal {name}"
