"""The output of a running sweep: a live table on a terminal, otherwise lines."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live

from nnunet_unifiedloss.sweep.status import Status
from nnunet_unifiedloss.sweep.tables import counts, live_table, matrix_table, remarks


class Display:
    """The live table and the lines above it.

    Args:
        console: The console to print on.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, statuses: Sequence[Status]) -> None:
        """Update the live table."""
        if self._console.is_terminal:
            self._live.update(live_table(statuses, self._console), refresh=True)

    def settled(self, status: Status) -> None:
        """Print the outcome of a job that has ended or will not be started."""
        dice = f", mean Dice {status.dice:.3f}" if status.dice is not None else ""
        error = f": {status.error}" if status.error else ""
        self.say(f"{status.state}: {status.job.name}{dice}{error}")

    def results(self, statuses: Sequence[Status]) -> None:
        """Print the matrix of all trainings, the errors and the number of jobs in each state."""
        self._console.print(matrix_table(statuses, self._console))
        for line in (*remarks(statuses), counts(statuses)):
            self._console.print(line, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print a line with the time of day."""
        line = f"{time.strftime('%H:%M:%S')} {text}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
