"""The commands ``path``, ``install``, ``uninstall`` and ``doctor``."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnunet_unifiedloss.cli.arguments import TRAIN
from nnunet_unifiedloss.training.probe import DEVICES

if TYPE_CHECKING:
    from rich.console import Console

    from nnunet_unifiedloss.training.doctor import Finding

STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def run_path(arguments: argparse.Namespace) -> int:
    """Print the folder of the trainers."""
    from nnunet_unifiedloss.training.install import trainers_folder

    print(trainers_folder())
    return 0


def run_install(arguments: argparse.Namespace) -> int:
    """Place the module in nnU-Net's folder."""
    from nnunet_unifiedloss.training.install import install

    result = install()
    print(
        f"{'already installed' if result.action == 'unchanged' else result.action}: {result.path}"
    )
    print(f"train with: {TRAIN}")
    return 0


def run_uninstall(arguments: argparse.Namespace) -> int:
    """Remove the module from nnU-Net's folder."""
    from nnunet_unifiedloss.training.install import uninstall

    result = uninstall()
    print(f"{'not installed' if result.action == 'unchanged' else result.action}: {result.path}")
    return 0


def add_doctor_arguments(command: argparse.ArgumentParser) -> None:
    """The flags of doctor."""
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument(
        "-device", choices=DEVICES, help="device to train on (default: the best there is)"
    )


def run_doctor(arguments: argparse.Namespace) -> int:
    """Report problems of this environment; 1 if training would fail."""
    from nnunet_unifiedloss._support.terminal import make_console
    from nnunet_unifiedloss.training.doctor import diagnose

    console = make_console()
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
