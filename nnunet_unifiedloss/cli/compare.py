"""The command ``compare``."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_unifiedloss.cli.arguments import fold, positive
from nnunet_unifiedloss.results.trainings import DEFAULT_FOLDS, DEFAULT_PLANS

if TYPE_CHECKING:
    from nnunet_unifiedloss.compare.comparison import Comparison


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The flags of the command: nnU-Net's own, with lists, and those of the statistics."""
    add = command.add_argument
    add("-d", nargs="+", required=True, metavar="ID", help="numbers or names of data sets")
    add("-c", nargs="+", default=["3d_fullres"], metavar="CONFIGURATION", help="(3d_fullres)")
    add("-tr", nargs="+", metavar="TRAINER", help="trainers (default: all that finished)")
    add("-p", nargs="+", default=[DEFAULT_PLANS], metavar="PLANS", help=f"({DEFAULT_PLANS})")
    folds = list(DEFAULT_FOLDS)
    add("-f", nargs="+", type=fold, default=folds, metavar="FOLD", help="or all (0 1 2 3 4)")
    add("-o", type=Path, metavar="DIR", help="folder for the report; without it, none is written")
    add("--baseline", metavar="TRAINER", help="(default: nnUNetTrainer if it is there)")
    add("--metrics", nargs="+", metavar="METRIC", help="to compare, the one to rank by first (all)")
    add("--tolerance", type=float, metavar="MM", help="of NSD (default: the largest spacing)")
    add(
        "--empty",
        choices=("worst", "nan"),
        default="worst",
        help="distance where only reference or prediction is empty: the image's diagonal, or left "
        "out (default: %(default)s)",
    )
    add("--strict", action="store_true", help="refuse to leave out a case")
    add("-np", type=positive, default=os.cpu_count() or 1, help="processes (%(default)s)")
    add("--json", action="store_true", help="print all tables as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Compare, write the report, print the ranking or JSON."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    from nnunet_unifiedloss.compare.comparison import compare
    from nnunet_unifiedloss.compare.report import check_report_folder, write_report
    from nnunet_unifiedloss.compare.tables import as_json

    if arguments.o is not None:
        check_report_folder(arguments.o)
    console = Console(stderr=True)
    bars = Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console)

    def show(done: int, total: int) -> None:
        if not bars.task_ids:  # without anything to measure no bar is shown
            bars.start()
            bars.add_task("Measuring")
        bars.update(bars.task_ids[0], completed=done, total=total)

    try:
        comparison = compare(
            arguments.d,
            arguments.c,
            trainers=arguments.tr,
            plans=arguments.p,
            folds=arguments.f,
            baseline=arguments.baseline,
            metrics=arguments.metrics,
            tolerance=arguments.tolerance,
            empty=arguments.empty,
            strict=arguments.strict,
            processes=arguments.np,
            progress=show,
        )
    finally:
        if bars.task_ids:
            bars.stop()
    page = None
    if arguments.o is not None:
        command = shlex.join(["nnunet-unifiedloss", *arguments.words])
        page = write_report(comparison, arguments.o, command=command)
    if arguments.json:
        print(as_json(comparison))
    else:
        _print_comparison(comparison, page)
    return 0


def _print_comparison(comparison: Comparison, page: Path | None) -> None:
    from rich.table import Table

    from nnunet_unifiedloss._support.terminal import make_console
    from nnunet_unifiedloss.compare.tables import ranking_rows
    from nnunet_unifiedloss.compare.verdict import caveats, verdict

    console = make_console()
    primary = comparison.settings.primary
    for dataset in comparison.datasets:
        table = Table(title=f"{dataset}, {primary}", title_justify="left")
        table.add_column("trainer", overflow="fold")
        for heading in ("rank", "first", primary, "difference", "p (Holm)", "effect"):
            table.add_column(heading, justify="right")
        for row in ranking_rows(comparison, dataset):
            name = row["method"] + (" (baseline)" if row["baseline"] else "")
            cells = [row[key] for key in ("rank", "first", "value", "difference", "p", "effect")]
            table.add_row(name, *cells)
        console.print(table)
    for text in caveats(comparison):
        console.print(f"note: {text}", soft_wrap=True)
    console.print(verdict(comparison), soft_wrap=True)
    if page is not None:
        console.print(f"report: {page}", soft_wrap=True)
