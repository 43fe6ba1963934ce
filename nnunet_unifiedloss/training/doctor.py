"""Find problems of this environment, each with the command that fixes it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from nnunet_unifiedloss._support.versions import installed_version
from nnunet_unifiedloss.training import install, machine
from nnunet_unifiedloss.training.finding import Finding, Status
from nnunet_unifiedloss.training.probe import DEVICES, Probe, probe_environment

__all__ = ["Finding", "diagnose"]


def diagnose(device: str | None = None) -> list[Finding]:
    """Check everything that a training with our trainers needs.

    Args:
        device: The device to train on, ``cuda``, ``mps`` or ``cpu``; None for the best there is.

    Returns:
        The findings, in the order in which problems should be fixed.

    Raises:
        ValueError: There is no such device.
    """
    if device is not None and device not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    probe = probe_environment(device)
    workers = probe.values.get("workers", min(12, os.cpu_count() or 1))
    checks: list[Callable[[], list[Finding]]] = [
        _check_versions,
        _check_requirements,
        lambda: _check_imports(probe),
        _check_command,
        _check_folders,
        lambda: _check_look_up(probe),
        _check_installed_module,
        _check_external_folders,
        lambda: machine.check_device(probe, device),
        lambda: machine.check_workers(probe),
        lambda: machine.check_shared_memory(workers),
        lambda: machine.check_open_files(workers),
    ]
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check()
        except (install.DiscoveryError, OSError) as error:
            remedy = getattr(error, "remedy", "check the file that the message names")
            findings.append(Finding("environment", "error", str(error), remedy))
    return findings


# Each check returns findings and raises nothing but DiscoveryError and OSError.


def _check_versions() -> list[Finding]:
    names = ("nnunet-unifiedloss", "nnunetv2", "torch")
    versions = [f"{name} {installed_version(name) or 'missing'}" for name in names]
    return [
        Finding("versions", "ok", ", ".join([f"Python {platform.python_version()}", *versions]))
    ]


def _check_requirements() -> list[Finding]:
    """Check the requirements of our package and of nnU-Net, as ``pip check`` does for all."""
    owners = [owner for owner in ("nnunet-unifiedloss", "nnunetv2") if installed_version(owner)]
    requirements = [
        (owner, Requirement(text)) for owner in owners for text in metadata.requires(owner) or ()
    ]
    findings = []
    for owner, requirement in requirements:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed_version(requirement.name)
        if version and requirement.specifier.contains(version, prereleases=True):
            continue
        # a source tree on PYTHONPATH has no version, yet may work
        importable = importlib.util.find_spec(requirement.name.replace("-", "_"))
        status: Status = "warning" if importable and not version else "error"
        detail = f"{owner} needs {requirement}, found {version or 'no version of it'}"
        remedy = f'pip install "{requirement.name}{requirement.specifier}"'
        findings.append(Finding("requirements", status, detail, remedy))
    return findings


def _check_imports(probe: Probe) -> list[Finding]:
    if "torch" in probe.errors:
        remedy = f"reinstall PyTorch as {machine.PYTORCH_SITE} says for this machine"
        return [Finding("torch", "error", probe.errors["torch"], remedy)]
    if "torchvision" not in probe.errors:
        both = f"torch {probe.values['torch']['version']}"
        return [Finding("torchvision", "ok", f"{probe.values['torchvision']} fits {both}")]
    # install both from PyPI, or from PyTorch's own index if the version names one of its builds
    release, _, build = probe.values["torch"]["version"].partition("+")
    major, minor = release.split(".")[:2]
    partner = f"torchvision==0.{int(minor) + 15}.*" if major == "2" else "torchvision"
    is_build = re.fullmatch(r"cpu|xpu|cu\d+|rocm[\d.]+", build)
    index = f" --index-url https://download.pytorch.org/whl/{build}" if is_build else ""
    remedy = f'pip install --force-reinstall "torch=={release}" "{partner}"{index}'
    detail = f"does not fit torch {release}, so nnU-Net can look up no trainer of ours"
    return [Finding("torchvision", "error", f"{detail}: {probe.errors['torchvision']}", remedy)]


def _check_command() -> list[Finding]:
    """Check that the shell runs the nnU-Net of this environment; they are often mixed up."""
    if importlib.util.find_spec("nnunetv2") is None:
        return []  # another check reports it
    scripts, found = Path(sysconfig.get_path("scripts")), shutil.which("nnUNetv2_train")
    remedy = f'activate the environment of {sys.executable}, or: export PATH="{scripts}:$PATH"'
    if not list(scripts.glob("nnUNetv2_train*")):
        remedy = "pip install --force-reinstall --no-deps nnunetv2"
    if found is None:
        return [Finding("command", "warning", "nnUNetv2_train is not on PATH", remedy)]
    with open(found, "rb") as script:
        first_line = script.readline(500).decode(errors="replace")
    interpreter = re.match(r"#!(/.*/python[\d.]*)$", first_line.strip())
    here = Path(sys.executable).parent.resolve()
    if interpreter is None or Path(interpreter[1]).parent.resolve() in (here, scripts.resolve()):
        return [Finding("command", "ok", found)]
    detail = f"{found} belongs to another environment, that of {interpreter[1]}"
    return [Finding("command", "warning", detail, remedy)]


# status of a folder that is not set, does not exist, or cannot be written to: nnU-Net trains
# without nnUNet_raw and creates nnUNet_results
_FOLDERS: dict[str, tuple[Status, Status, Status]] = {
    "nnUNet_raw": ("warning", "warning", "warning"),
    "nnUNet_preprocessed": ("error", "error", "error"),
    "nnUNet_results": ("error", "warning", "error"),
}


def _check_folders() -> list[Finding]:
    return [_check_folder(variable, *statuses) for variable, statuses in _FOLDERS.items()]


def _check_folder(variable: str, unset: Status, absent: Status, unwritable: Status) -> Finding:
    folder = os.environ.get(variable)
    if not folder:
        proposal = f"$HOME/nnUNet/{variable}"
        remedy = f'mkdir -p "{proposal}"; {install.export_line(variable, proposal)}'
        return Finding(variable, unset, "not set", remedy)
    if not os.path.lexists(folder):
        return Finding(variable, absent, f"{folder} does not exist", f'mkdir -p "{folder}"')
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Finding(variable, "ok", folder)
    except OSError as error:
        other = install.export_line(variable, "<a folder of yours>")
        remedy = f'chmod u+w "{folder}", or: {other}' if os.path.isdir(folder) else other
        detail = f"{folder} cannot be written to: {error.strerror}"
        return Finding(variable, unwritable, detail, remedy)


def _check_look_up(probe: Probe) -> list[Finding]:
    check, remedy = "look-up", f"nnunet-unifiedloss install, or: {install.external_line()}"
    if check in probe.errors:
        see = "fix the problems above; a training would stop at this error, too"
        return [Finding(check, "error", probe.errors[check], see)]
    result = install.LookUp(**probe.values[check])
    ways = ["the installed module"] if result.installed else []
    if install.external_folders() and (_external_is_ours() or not ways):
        ways.append(install.VARIABLE)
    findings = [
        Finding(
            "name clashes", "error", f"{name} is {other}, not ours", "rename or remove that class"
        )
        for name, other in result.clashes.items()
    ]
    if result.missing:
        missing = "any trainer of ours" if not result.found else ", ".join(result.missing)
        findings.append(Finding(check, "error", f"nnU-Net does not find {missing}", remedy))
    elif result.found:
        detail = f"nnU-Net finds {len(result.found)} trainers by {' and by '.join(ways)}"
        findings.append(Finding(check, "ok", detail))
    return findings


def _check_installed_module() -> list[Finding]:
    if importlib.util.find_spec("nnunetv2") is None:
        return []
    state = install.module_state()
    if state == "outdated":
        detail = "the installed module is that of another version"
        return [Finding("install", "warning", detail, "nnunet-unifiedloss install")]
    if state == "foreign":
        detail = f"{install.MODULE_NAME}.py in nnU-Net's folder is not ours"
        return [Finding("install", "warning", detail, "move it away: it has our module's name")]
    return []


def _external_is_ours() -> bool:
    ours = install.trainers_folder()
    return any(Path(folder).resolve() == ours for folder in install.external_folders())


def _check_external_folders() -> list[Finding]:
    check, remedy, findings = install.VARIABLE, install.external_line(), []
    for folder in install.external_folders():
        is_ours = Path(folder).resolve() == install.trainers_folder()
        if not os.path.exists(folder):
            findings.append(Finding(check, "warning", f"{folder} does not exist", remedy))
        elif not is_ours and any(Path(folder).glob("unifiedloss_*.py")):
            detail = f"{folder} holds another copy of our trainers"
            findings.append(Finding(check, "warning", detail, remedy))
    return findings
