"""The command ``list``."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnunet_unifiedloss.cli.arguments import TRAIN

if TYPE_CHECKING:
    from rich.table import Table

    from nnunet_unifiedloss.training.catalogue import TrainerEntry


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    command.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print every trainer."""
    from nnunet_unifiedloss._support.terminal import fits, make_console
    from nnunet_unifiedloss.training.catalogue import catalogue

    entries = catalogue()
    if arguments.json:
        print(json.dumps([dataclasses.asdict(entry) for entry in entries], indent=2))
        return 0
    console = make_console()
    table = _wide_table(entries)
    console.print(table if fits(console, table) else _narrow_table(entries))
    print(f"Parameters are set in the name: {TRAIN}_delta0.7_250epochs")
    return 0


def _wide_table(entries: Sequence[TrainerEntry]) -> Table:
    from rich.table import Table

    table = Table("Trainer", "Loss", "Scale", "Parameters", "Paper", "When to use it")
    for entry in entries:
        cells = (f"{entry.scale:g}", _parameters(entry), entry.paper, entry.when)
        table.add_row(entry.trainer, entry.loss, *cells)
    return table


def _narrow_table(entries: Sequence[TrainerEntry]) -> Table:
    """Two columns, because six in a usual terminal would cut names into pieces."""
    from rich.table import Table

    table = Table("Trainer and loss", "When to use it, scale, parameters, paper", show_lines=True)
    table.columns[0].no_wrap = True  # it is copied into a command
    for entry in entries:
        description = [entry.when, f"scale {entry.scale:g}", _parameters(entry), entry.paper]
        table.add_row(f"{entry.trainer}\n{entry.loss}", "\n".join(filter(None, description)))
    return table


def _parameters(entry: TrainerEntry) -> str:
    """The parameters and defaults of a loss, spelt as in a trainer's name."""
    from nnunet_unifiedloss.training.names import camel_case, format_value

    return " ".join(
        f"{camel_case(name)}={value if value is None else format_value(value)}"
        for name, value in entry.parameters.items()
    )
