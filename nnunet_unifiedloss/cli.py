"""The command ``nnunet-unifiedloss``: parses, calls the library, prints.

Imports are inside the functions: ``--help`` and ``path`` must not wait for torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_unifiedloss import __version__, cli_compare, cli_export, cli_sweep
from nnunet_unifiedloss.probe import DEVICES

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from nnunet_unifiedloss.doctor import Finding
    from nnunet_unifiedloss.naming import TrainerEntry

PROGRAM = "nnunet-unifiedloss"
EXAMPLE = "nnUNetv2_train DATASET 3d_fullres 0 -tr nnUNetTrainerUnifiedFocal"
STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments, those of the process by default.

    Returns:
        The exit code: 0, or 1 where something is wrong, 130 when interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        # a pipe in the C locale knows no γ: better a question mark than a traceback
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = _parser().parse_args(words, argparse.Namespace(words=words))
    command: Callable[[argparse.Namespace], int] = arguments.run
    try:
        code = command(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader has seen enough; Python would complain again when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        return _fail(error)
    return code


def _fail(error: Exception) -> int:
    remedy = getattr(error, "remedy", None)
    if remedy is None and isinstance(error, ImportError):
        remedy = f"{PROGRAM} doctor"
    text = str(error).strip() or type(error).__name__
    print(f"error: {text}", file=sys.stderr)
    if remedy:
        print(f"remedy: {remedy}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Losses for severe class imbalance as nnU-Net v2 trainers."
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(
        name: str, run: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    add("path", _path, "Print the folder of the trainers, the value for nnUNet_extTrainer.")
    add("install", _install, "Make nnU-Net find the trainers: place a module in its folder.")
    add("uninstall", _uninstall, "Remove what install placed in nnU-Net's folder.")
    command = add("list", _list, "List every trainer: loss, parameters, paper, when to use it.")
    command.add_argument("--json", action="store_true", help="print JSON")
    command = add("doctor", _doctor, "Check this environment; exit code 1 if training would fail.")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument(
        "-device", choices=DEVICES, help="device to train on (default: the best there is)"
    )
    command = add("compare", cli_compare.run, "Which trainer is better, with statistics.")
    cli_compare.add_arguments(command)
    command = add("demo", _demo, "Train on a small phantom data set and compare, in minutes.")
    command.add_argument(
        "-o",
        metavar="DIR",
        dest="folder",
        type=Path,
        default=Path("unifiedloss-demo"),
        help="folder for everything that the demo writes (default: %(default)s)",
    )
    command.add_argument(
        "--epochs",
        metavar="N",
        type=_positive,
        default=5,
        help="length of the trainings, one that nnU-Net's own trainer comes with: "
        "1, 5, 10, 20, 50, 100, … (default: %(default)s)",
    )
    command.add_argument("-device", choices=DEVICES, default="cpu", help="(default: %(default)s)")
    command = add("sweep", cli_sweep.run, "Train a matrix of trainings, here or on a cluster.")
    cli_sweep.add_arguments(command)
    command = add("export", cli_export.run_export, "Write a model that a stock nnU-Net runs.")
    cli_export.add_export_arguments(command)
    command = add("verify", cli_export.run_verify, "Check what export wrote; 1 if it is refused.")
    command.add_argument("archive", metavar="FILE", type=Path, help="the zip archive")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


def _path(arguments: argparse.Namespace) -> int:
    from nnunet_unifiedloss.discovery import trainers_folder

    print(trainers_folder())
    return 0


def _install(arguments: argparse.Namespace) -> int:
    from nnunet_unifiedloss.discovery import install

    result = install()
    print(
        f"{'already installed' if result.action == 'unchanged' else result.action}: {result.path}"
    )
    print(f"train with: {EXAMPLE}")
    return 0


def _uninstall(arguments: argparse.Namespace) -> int:
    from nnunet_unifiedloss.discovery import uninstall

    result = uninstall()
    print(f"{'not installed' if result.action == 'unchanged' else result.action}: {result.path}")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from nnunet_unifiedloss.naming import catalogue
    from nnunet_unifiedloss.terminal import fits

    entries = catalogue()
    if arguments.json:
        print(json.dumps([dataclasses.asdict(entry) for entry in entries], indent=2))
        return 0
    console = _console()
    table = _wide_table(entries)
    console.print(table if fits(console, table) else _narrow_table(entries))
    print(f"Parameters are set in the name: {EXAMPLE}_delta0.7_250epochs")
    return 0


def _wide_table(entries: Sequence[TrainerEntry]) -> Table:
    from rich.table import Table

    table = Table("Trainer", "Loss", "Parameters", "Paper", "When to use it")
    for entry in entries:
        table.add_row(entry.trainer, entry.loss, _parameters(entry), entry.paper, entry.when)
    return table


def _narrow_table(entries: Sequence[TrainerEntry]) -> Table:
    """Two columns, because five in a usual terminal would cut names into pieces."""
    from rich.table import Table

    table = Table("Trainer and loss", "When to use it, parameters, paper", show_lines=True)
    table.columns[0].no_wrap = True  # it is copied into a command
    for entry in entries:
        description = [entry.when, _parameters(entry), entry.paper]
        table.add_row(f"{entry.trainer}\n{entry.loss}", "\n".join(filter(None, description)))
    return table


def _parameters(entry: TrainerEntry) -> str:
    """The parameters and defaults of a loss, spelt as in a trainer's name."""
    from nnunet_unifiedloss.naming import camel_case, format_value

    return " ".join(
        f"{camel_case(name)}={value if value is None else format_value(value)}"
        for name, value in entry.parameters.items()
    )


def _console() -> Console:
    """A console for stdout, as wide as need be where no terminal sets its width."""
    from rich.console import Console

    from nnunet_unifiedloss.terminal import UNLIMITED_WIDTH

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = UNLIMITED_WIDTH
    return console


def _doctor(arguments: argparse.Namespace) -> int:
    from nnunet_unifiedloss.doctor import diagnose

    console = _console()
    with console.status("Checking (imports PyTorch and nnU-Net)"):
        findings = diagnose(arguments.device)
    errors = sum(finding.status == "error" for finding in findings)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        _print_findings(console, findings)
        warnings = sum(finding.status == "warning" for finding in findings)
        verdict = "training would fail" if errors else "training can start"
        print(f"\n{errors} errors, {warnings} warnings: {verdict}")
    return 1 if errors else 0


def _print_findings(console: Console, findings: Sequence[Finding]) -> None:
    from rich.text import Text

    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        line = Text(f"{finding.status:8}", style=STYLES[finding.status])
        line.append(f"{finding.check:{width}}  {finding.detail}", style="default not bold")
        console.print(line, soft_wrap=True)  # a broken path cannot be copied
        if finding.remedy:
            print(f"{'':{8 + width}}  remedy: {finding.remedy}")


def _demo(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from nnunet_unifiedloss.demo import run_demo

    run_demo(arguments.folder, epochs=arguments.epochs, device=arguments.device, console=Console())
    return 0
