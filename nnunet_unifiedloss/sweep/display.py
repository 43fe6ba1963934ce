"""What the user sees while a sweep runs: a live table on a terminal, lines in a file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live

from nnunet_unifiedloss.sweep.status import Status
from nnunet_unifiedloss.sweep.tables import live_table


class Display:
    """The live table and the lines above it.

    Args:
        console: Where to show them.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def show(self, statuses: Sequence[Status]) -> None:
        """Show how far all jobs are."""
        if self._console.is_terminal:
            self._live.update(live_table(statuses, self._console), refresh=True)

    def settled(self, status: Status) -> None:
        """A job has come to its end, or will not be started."""
        dice = f", mean Dice {status.dice:.3f}" if status.dice is not None else ""
        error = f": {status.error}" if status.error else ""
        self.say(f"{status.state}: {status.job.name}{dice}{error}")

    def say(self, text: str) -> None:
        """Print a line with the time of day."""
        line = f"{time.strftime('%H:%M:%S')} {text}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
