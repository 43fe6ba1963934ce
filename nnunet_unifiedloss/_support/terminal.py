"""The user's terminal: a console for it, and what fits on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

UNLIMITED_WIDTH = 1000


def make_console() -> Console:
    """A console for stdout, as wide as need be where no terminal sets its width."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = UNLIMITED_WIDTH
    return console


def fits(console: Console, table: Table) -> bool:
    """Whether the console is wide enough to show the table without cutting names into pieces."""
    from rich.measure import Measurement

    unlimited = console.options.update(max_width=UNLIMITED_WIDTH)
    return Measurement.get(console, unlimited, table).maximum <= console.width
