"""Checks that import torch or nnU-Net, in a process of their own.

A build that does not fit may kill the interpreter. One process serves all steps, as importing torch
takes seconds; where a step kills it, the steps after it get a new one.
"""

from __future__ import annotations

import difflib
import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nnunet_unifiedloss.training import install

DEVICES = ("cuda", "mps", "cpu")
SECONDS_PER_PROBE = 300


Request = Mapping[str, Any]  # the steps and their arguments


@dataclass(frozen=True)
class Probe:
    """Result of the steps that import torch or nnU-Net: a value or an error for each."""

    values: dict[str, Any]
    errors: dict[str, str]


def _probe_workers(_request: Request) -> int:
    from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

    return int(get_allowed_n_proc_DA())


def _probe_torch(_request: Request) -> dict[str, Any]:
    import torch

    return {"version": torch.__version__, "gpu_build": torch.version.cuda or torch.version.hip}


def _probe_torchvision(_request: Request) -> str:
    import torch

    torchvision = importlib.import_module("torchvision")
    torch.ops.torchvision.nms  # noqa: B018 (an operator of another build is missing)
    return str(torchvision.__version__)


def _probe_device(request: Request) -> dict[str, Any]:
    import torch

    device = request["device"]
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    available = [name for name in DEVICES if usable.get(name, True)]
    chosen = device or available[0]
    if chosen in available:
        (torch.ones(1, device=chosen) + 1).item()  # a build without kernels for this GPU fails here
    name = torch.cuda.get_device_name() if chosen == "cuda" and usable["cuda"] else chosen
    return {"available": available, "chosen": chosen, "name": name}


def _probe_look_up(_request: Request) -> dict[str, Any]:
    return asdict(install.look_up())


def _probe_trainers(request: Request) -> dict[str, str]:
    """Reasons why nnU-Net's look-up does not find trainers."""
    reasons = {name: _why_not_found(name) for name in request["trainers"]}
    return {name: reason for name, reason in reasons.items() if reason}


def _why_not_found(trainer: str) -> str | None:
    from nnunet_unifiedloss.training.catalogue import catalogue

    try:
        if install.host_look_up(trainer) is not None:
            return None
    except Exception as error:  # the error of a name that breaks our grammar explains the grammar
        text = str(error)
        return text if text.startswith(trainer) else f"{trainer}: no trainer's name ({text})"
    known = [entry.trainer for entry in catalogue()]
    close = difflib.get_close_matches(trainer.partition("_")[0], [*known, "nnUNetTrainer"])
    meant = (
        f"did you mean {' or '.join(close)}?" if close else "set nnUNet_extTrainer to its folder"
    )
    return f"{trainer}: nnU-Net finds no such trainer; remedy: {meant}"


_STEPS: dict[str, Callable[[Request], Any]] = {
    "workers": _probe_workers,
    "torch": _probe_torch,
    "torchvision": _probe_torchvision,
    "device": _probe_device,
    "look-up": _probe_look_up,
    "trainers": _probe_trainers,
}
_ENVIRONMENT = ("workers", "torch", "torchvision", "device", "look-up")
_CHILD = """
import json, sys
request = json.load(sys.stdin)
sys.path[:] = request["path"]
from nnunet_unifiedloss.training.probe import take_steps
take_steps(request)
"""


def take_steps(request: Request) -> None:
    """Run steps of the probe in this process and write one line of JSON for each to stdout."""
    for step in request["steps"]:
        try:
            report = {"step": step, "value": _STEPS[step](request)}
        except Exception as error:  # every error is a finding
            text = " ".join(f"{type(error).__name__}: {error}".split())
            report = {"step": step, "error": text[:400]}
        sys.stdout.write("\n" + json.dumps(report) + "\n")
        sys.stdout.flush()


def probe_environment(device: str | None) -> Probe:
    """Run the steps of doctor; one that kills or blocks its process becomes an error."""
    return _take_all(_ENVIRONMENT, device=device)


def check_trainers(trainers: Iterable[str]) -> None:
    """Refuse trainers that nnU-Net's own look-up does not find; it takes seconds.

    Raises:
        ValueError: It does not find one, or the look-up itself fails.
    """
    probe = _take_all(("trainers",), trainers=list(trainers))
    for error in probe.errors.values():
        raise ValueError(
            f"nnU-Net's trainers cannot be looked up: {error}; remedy: nnunet-unifiedloss doctor"
        )
    for problem in probe.values["trainers"].values():
        raise ValueError(problem)


def _take_all(steps: Sequence[str], **options: Any) -> Probe:  # noqa: ANN401 (what JSON can hold)
    probe, remaining = Probe({}, {}), list(steps)
    while remaining:
        output, end = _run_child({"path": sys.path, "steps": remaining, **options})
        for line in output.splitlines():
            if line.startswith('{"step": '):
                report = json.loads(line)
                to = probe.errors if "error" in report else probe.values
                to[report["step"]] = report.get("error", report.get("value"))
                remaining.remove(report["step"])
        if remaining:  # the step that killed the process; the others get a new one
            probe.errors[remaining.pop(0)] = end
    return probe


def _run_child(request: Request) -> tuple[str, str]:
    """Output of a process that takes steps, and how it ended."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        try:
            child = subprocess.run(
                [sys.executable, "-c", _CHILD],
                input=json.dumps(request).encode(),
                stdout=output,
                stderr=subprocess.PIPE,
                timeout=SECONDS_PER_PROBE,
            )
            last_lines = child.stderr.decode(errors="replace").strip().splitlines()[-1:]
            end = " ".join([f"Python ended with exit code {child.returncode}", *last_lines])
        except subprocess.TimeoutExpired:
            end = f"no answer within {SECONDS_PER_PROBE} s"
        output.seek(0)
        return output.read(), end
