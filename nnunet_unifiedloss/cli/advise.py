"""The command ``advise``."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from nnunet_unifiedloss.cli.arguments import positive

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from nnunet_unifiedloss.advise.advice import Advice, Recommendation
    from nnunet_unifiedloss.advise.findings import StructureFindings


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
    show = console.print
    plans = advice.plans or "not planned yet"
    show(f"{advice.dataset}, {advice.configuration} ({plans}): {advice.cases} cases")
    show(_table(advice))
    if advice.plans is None:
        show(
            "Without plans, nothing is known about patches, and voxels are those of the images: "
            f"nnUNetv2_plan_experiment -d {advice.dataset} after nnUNetv2_extract_fingerprint",
            soft_wrap=True,
        )
    show("\nTry first:")
    for recommendation in advice.first:
        _print_recommendation(console, recommendation)
    if advice.avoid:
        show("\nNot first:")
    for recommendation in advice.avoid:
        _print_recommendation(console, recommendation)
    show(
        f"\n{advice.trainings} trainings of nnU-Net's 1,000 epochs; for a first impression, use "
        "-f 0 and names with _100epochs:",
        soft_wrap=True,
    )
    show(f"{advice.sweep}\n{advice.compare}", soft_wrap=True)


def _print_recommendation(console: Console, item: Recommendation) -> None:
    cost = "" if item.time is None else f" (loss: {item.time:g} × time, {item.memory:g} × memory)"
    console.print(f"  {item.trainer}{cost}", soft_wrap=True)
    for reason in item.reasons:
        console.print(f"    {reason.text} [{reason.evidence}]", soft_wrap=True)
        for structure, facts in reason.because.items():
            console.print(f"      {structure}: {facts}", soft_wrap=True)


def _table(advice: Advice) -> Table:
    from rich.table import Table

    table = Table("structure")
    headings = ["voxels", "cases without", "components", "per case"]
    headings += [f"median {advice.unit} (range)", "< 5 voxels", "in patches", "elongated"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for structure in advice.structures:
        table.add_row(structure.name, *_cells(structure))
    return table


def _cells(structure: StructureFindings) -> list[str]:
    volumes = structure.volumes
    return [
        f"{100 * structure.share:.2g} %",
        str(structure.cases_without),
        str(structure.components),
        f"{structure.per_case:g}",
        f"{volumes.median:.3g} ({volumes.smallest:.3g}–{volumes.largest:.4g})" if volumes else "–",
        f"{structure.tiny_components} ({structure.tiny:.0%})",
        "–" if structure.patches is None else f"{structure.patches:.0%}",
        f"{structure.tubular:.0%}",
    ]
