"""The demo's commands: live progress while they run, and what to do when they fail."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from nnunet_unifiedloss._support.processes import console_script, ending, first_error, running

__all__ = ["run_command", "say"]

LOG_LINES_SHOWN = 15
SECONDS_BETWEEN_LOOKS = 0.5


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
    arguments = [console_script(command[0]), *command[1:]]
    # Python would otherwise hold back output that goes to a file, and the progress with it.
    environment = {**os.environ, **settings, "PYTHONUNBUFFERED": "1"}
    log.parent.mkdir(parents=True, exist_ok=True)
    shown = console.is_terminal
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with (
        log.open("w", encoding="utf-8") as output,
        Progress(*columns, console=console, transient=True, disable=not shown) as progress,
        running(arguments, environment, output.fileno()) as process,
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
    error = first_error(output)
    lines = [line for line in output.splitlines() if line.strip()][-LOG_LINES_SHOWN:]
    return "\n".join(
        (
            f"this command {ending(status)}:",
            f"  {shlex.join(command)}",
            *((f"The first error in its output: {error}",) if error else ()),
            "The last lines of its output:",
            *(f"  {line}" for line in lines),
            f"All of it is in {log}",
            "Mend the cause and run the demo again: it goes on from here.",
        )
    )
