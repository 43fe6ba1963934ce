"""The user's terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

UNLIMITED_WIDTH = 1000


def make_console() -> Console:
    """Return a console for stdout, which never folds lines if stdout is not a terminal."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = UNLIMITED_WIDTH
    return console


def fits(console: Console, table: Table) -> bool:
    """Return True if the console shows the table without breaking names."""
    from rich.measure import Measurement

    unlimited = console.options.update(max_width=UNLIMITED_WIDTH)
    return Measurement.get(console, unlimited, table).maximum <= console.width
