"""What fits on the user's terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

UNLIMITED_WIDTH = 1000


def fits(console: Console, table: Table) -> bool:
    """Whether the console is wide enough to show the table without cutting names into pieces."""
    from rich.measure import Measurement

    unlimited = console.options.update(max_width=UNLIMITED_WIDTH)
    return Measurement.get(console, unlimited, table).maximum <= console.width
