"""The command ``advise``."""

from __future__ import annotations

import argparse
import functools
import itertools
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from nnunet_unifiedloss.cli.arguments import positive

if TYPE_CHECKING:
    from rich.console import Console

    from nnunet_unifiedloss.advise.advice import Advice, Reason, Recommendation
    from nnunet_unifiedloss.advise.findings import StructureFindings, Volumes


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    add = command.add_argument
    add("-d", required=True, metavar="ID", help="number or name of the data set")
    add("-c", metavar="CONFIGURATION", help="(default: 3d_fullres, or 2d where that is all)")
    add("-p", metavar="PLANS", help="(default: nnUNetPlans, if the data set is planned)")
    add("-np", type=positive, default=os.cpu_count() or 1, help="processes (%(default)s)")
    add("--json", action="store_true", help="print everything as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Measure the labels, print the findings and the advice or JSON."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    from nnunet_unifiedloss._support.terminal import make_console
    from nnunet_unifiedloss.advise.advice import advise, as_json

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("Reading labels", total=None)
        advice = advise(
            arguments.d,
            arguments.c,
            plans=arguments.p,
            processes=arguments.np,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    if arguments.json:
        print(as_json(advice))
    else:
        _print_advice(make_console(), advice)
    return 0


def _print_advice(console: Console, advice: Advice) -> None:
    show = functools.partial(console.print, soft_wrap=True)
    plans = advice.plans or "not planned yet"
    show(f"{advice.dataset}, {advice.configuration} ({plans}), {advice.cases} cases")
    _print_structures(console, advice)
    if advice.plans is None:
        show(
            "Without plans, patches are unknown, and voxels are those of the images; to plan: "
            f"nnUNetv2_plan_and_preprocess -d {advice.dataset} --no_pp"
        )
    show("\nTry first:")
    _print_trainers(console, advice.first)
    if advice.avoid:
        show("\nNot first:")
        _print_trainers(console, advice.avoid)
    show(
        f"\n{advice.trainings} trainings of nnU-Net's 1,000 epochs, often a day each on a GPU; for "
        "a first impression, add -f 0 and _100epochs to each name:"
    )
    show(f"{advice.sweep}\n{advice.compare}")


def _print_trainers(console: Console, items: Iterable[Recommendation]) -> None:
    """Print trainers with their reasons; those with the same reasons together."""
    show = functools.partial(console.print, soft_wrap=True)
    for reasons, group in itertools.groupby(items, key=lambda item: item.reasons):
        show(f"  {', '.join(_with_cost(item) for item in group)}")
        for reason in reasons:
            show(f"    {reason.text} ({reason.evidence})")
            show(f"    {_because(reason)}" if reason.because else "", end="")


def _with_cost(item: Recommendation) -> str:
    if item.time is None:
        return item.trainer
    return f"{item.trainer} (loss: {item.time:g} × time, {item.memory:g} × memory)"


def _because(reason: Reason) -> str:
    """Return the facts, with the names of all structures that share them."""
    names: dict[str, list[str]] = {}
    for structure, facts in reason.because.items():
        names.setdefault(facts, []).append(structure)
    return "; ".join(f"{', '.join(of_facts)}: {facts}" for facts, of_facts in names.items()) + "\n"


def _print_structures(console: Console, advice: Advice) -> None:
    """Print a table, or lines in a terminal that is too narrow for the table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from nnunet_unifiedloss._support.terminal import fits

    headings = ["voxels", "cases\nwithout", "components", "per\ncase"]
    headings += [f"{advice.unit}: median\n(range)", "< 5\nvoxels", "in\npatches", "elongated"]
    table = Table("structure", box=SIMPLE_HEAD)
    for heading in headings:
        table.add_column(heading, justify="right")
    for structure in advice.structures:
        table.add_row(structure.name, *_cells(structure))
    if fits(console, table):
        console.print(table)
        return
    for structure in advice.structures:
        named = zip(headings, _cells(structure), strict=True)
        facts = (f"{heading} {cell}".replace("\n", " ") for heading, cell in named)
        console.print(f"  {structure.name}: {', '.join(facts)}")


def _cells(structure: StructureFindings) -> list[str]:
    return [
        f"{100 * structure.share:.2g} %",
        str(structure.cases_without),
        str(structure.components),
        f"{structure.per_case:g}",
        _range(structure.volumes) if structure.volumes else "–",
        f"{structure.tiny_components} ({structure.tiny:.0%})",
        "–" if structure.patches is None else f"{structure.patches:.0%}",
        f"{structure.tubular:.0%}",
    ]


def _range(volumes: Volumes) -> str:
    values = (volumes.median, volumes.smallest, volumes.largest)
    texts = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values]
    return "{} ({}–{})".format(*texts)
