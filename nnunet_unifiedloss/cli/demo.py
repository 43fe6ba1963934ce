"""The command ``demo``."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_unifiedloss.cli.arguments import positive
from nnunet_unifiedloss.training.probe import DEVICES


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
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
        type=positive,
        default=5,
        help="length of the trainings, one of nnU-Net's own shorter trainers: "
        "1, 5, 10, 20, 50, 100, … (default: %(default)s)",
    )
    command.add_argument("-device", choices=DEVICES, default="cpu", help="(default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Train on the phantom and compare."""
    from nnunet_unifiedloss._support.terminal import make_console
    from nnunet_unifiedloss.demo.run import run_demo

    console = make_console()
    run_demo(arguments.folder, epochs=arguments.epochs, device=arguments.device, console=console)
    return 0
