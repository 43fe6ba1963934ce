"""The command line: its parser and its handling of errors."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from nnunet_unifiedloss import __version__
from nnunet_unifiedloss.cli import advise, catalogue, compare, demo, environment, export, sweep
from nnunet_unifiedloss.cli.arguments import PROGRAM

Run = Callable[[argparse.Namespace], int]
AddArguments = Callable[[argparse.ArgumentParser], None]
COMMANDS: dict[str, tuple[Run, AddArguments | None, str]] = {
    "path": (
        environment.run_path,
        None,
        "Print the folder of the trainers, the value for nnUNet_extTrainer.",
    ),
    "install": (
        environment.run_install,
        None,
        "Make nnU-Net find the trainers: place a module in its folder.",
    ),
    "uninstall": (
        environment.run_uninstall,
        None,
        "Remove what install placed in nnU-Net's folder.",
    ),
    "list": (
        catalogue.run,
        catalogue.add_arguments,
        "List every trainer: loss, parameters, paper, when to use it.",
    ),
    "doctor": (
        environment.run_doctor,
        environment.add_doctor_arguments,
        "Check this environment; exit code 1 if training would fail.",
    ),
    "advise": (
        advise.run,
        advise.add_arguments,
        "Recommend trainers from the labels of a data set.",
    ),
    "compare": (compare.run, compare.add_arguments, "Which trainer is better, with statistics."),
    "demo": (
        demo.run,
        demo.add_arguments,
        "Train on a small phantom data set and compare, in minutes.",
    ),
    "sweep": (
        sweep.run,
        sweep.add_arguments,
        "Train a matrix of trainings, here or on a cluster.",
    ),
    "export": (
        export.run_export,
        export.add_export_arguments,
        "Write a model that a stock nnU-Net runs.",
    ),
    "verify": (
        export.run_verify,
        export.add_verify_arguments,
        "Check what export wrote; 1 if it is refused.",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments, those of the process by default.

    Returns:
        The exit code: 0, or 1 where something is wrong, 130 when interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        # in the C locale γ becomes a question mark instead of a traceback
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = make_parser().parse_args(words, argparse.Namespace(words=words))
    command: Run = arguments.run
    try:
        code = command(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader has closed the pipe; Python would raise again when it closes stdout
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


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets ``run``, the function that carries it out."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Losses for severe class imbalance as nnU-Net v2 trainers."
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (run, add_arguments, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        if add_arguments is not None:
            add_arguments(command)
    return parser
