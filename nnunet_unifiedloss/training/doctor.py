"""What is wrong with this environment, and the command that mends it."""

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
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from nnunet_unifiedloss.training import install
from nnunet_unifiedloss.training.probe import DEVICES, Probe, probe_environment

__all__ = ["Finding", "diagnose"]

SHARED_MEMORY = Path("/dev/shm")
WORKERS_VARIABLE = "nnUNet_n_proc_DA"
# two patches of 128³ voxels with four float32 images, and int16 labels at all resolutions
MEGABYTES_PER_BATCH = 77
PYTORCH_SITE = "https://pytorch.org/get-started/locally"

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: What was looked at.
        status: ``error`` where a training would fail or train something else.
        detail: What was found.
        remedy: What mends it, where there is something to mend.
    """

    check: str
    status: Status
    detail: str
    remedy: str = ""


def diagnose(device: str | None = None) -> list[Finding]:
    """Check all that a training with our trainers needs.

    Args:
        device: The device to train on, ``cuda``, ``mps`` or ``cpu``; None for the best there is.

    Returns:
        What was found, in the order in which it should be mended.

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
        lambda: _check_device(probe, device),
        lambda: _check_workers(probe),
        lambda: _check_shared_memory(workers),
        lambda: _check_open_files(workers),
    ]
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check()
        except (install.DiscoveryError, OSError) as error:
            remedy = getattr(error, "remedy", "see to the file that the message names")
            findings.append(Finding("environment", "error", str(error), remedy))
    return findings


# The checks: each gives findings, none of them raises.


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _check_versions() -> list[Finding]:
    names = ("nnunet-unifiedloss", "nnunetv2", "torch")
    versions = [f"{name} {_version(name) or 'missing'}" for name in names]
    return [
        Finding("versions", "ok", ", ".join([f"Python {platform.python_version()}", *versions]))
    ]


def _check_requirements() -> list[Finding]:
    """What our package and nnU-Net require of others, as their metadata says."""
    findings = []
    for owner in ("nnunet-unifiedloss", "nnunetv2"):
        requirements = metadata.requires(owner) if _version(owner) else None
        for requirement in map(Requirement, requirements or []):
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            version = _version(requirement.name)
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
        remedy = f"reinstall PyTorch as {PYTORCH_SITE} says for this machine"
        return [Finding("torch", "error", probe.errors["torch"], remedy)]
    if "torchvision" not in probe.errors:
        both = f"torch {probe.values['torch']['version']}"
        return [Finding("torchvision", "ok", f"{probe.values['torchvision']} fits {both}")]
    # both from one source: PyPI, or PyTorch's own index where the version names one of its builds
    release, _, build = probe.values["torch"]["version"].partition("+")
    major, minor = release.split(".")[:2]
    partner = f"torchvision==0.{int(minor) + 15}.*" if major == "2" else "torchvision"
    is_build = re.fullmatch(r"cpu|xpu|cu\d+|rocm[\d.]+", build)
    index = f" --index-url https://download.pytorch.org/whl/{build}" if is_build else ""
    remedy = f'pip install --force-reinstall "torch=={release}" "{partner}"{index}'
    detail = f"does not fit torch {release}, so nnU-Net can look up no trainer of ours"
    return [Finding("torchvision", "error", f"{detail}: {probe.errors['torchvision']}", remedy)]


def _check_command() -> list[Finding]:
    """Whether the shell's nnU-Net is that of this environment; a common mix-up."""
    if importlib.util.find_spec("nnunetv2") is None:
        return []  # said already, and no command can be right
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


# where it is not set, does not exist, cannot be written to: nnU-Net trains without nnUNet_raw, and
# makes nnUNet_results
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
        see = "mend what stands above; nnU-Net's look-up stops at this error, a training would, too"
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


def _check_device(probe: Probe, device: str | None) -> list[Finding]:
    if "device" in probe.errors:
        wanted = f"install a PyTorch for this machine: {PYTORCH_SITE}; or train with -device cpu"
        return [Finding("device", "error", probe.errors["device"], wanted)]
    available, chosen = probe.values["device"]["available"], probe.values["device"]["chosen"]
    if chosen not in available:
        gpu_build = probe.values["torch"]["gpu_build"]
        detail = f"{chosen} is not available; there is {', '.join(available)}"
        remedy = f"train with -device {available[0]}"
        if chosen == "cuda" and not gpu_build:
            remedy = f"this PyTorch is without CUDA; install another: {PYTORCH_SITE}; or {remedy}"
        elif chosen == "cuda":
            remedy = f"see whether `nvidia-smi` and CUDA_VISIBLE_DEVICES show a GPU; or {remedy}"
        return [Finding("device", "error", detail, remedy)]
    if device is None and chosen != "cuda":
        detail = f"no CUDA device, which is what nnUNetv2_train asks for; there is {chosen}"
        remedy = f"train with -device {chosen}"
        return [Finding("device", "warning", detail, remedy)]
    return [Finding("device", "ok", probe.values["device"]["name"])]


def _check_workers(probe: Probe) -> list[Finding]:
    value = os.environ.get(WORKERS_VARIABLE)
    if value is None or "workers" not in probe.errors:
        return []
    detail = f"{WORKERS_VARIABLE}={value}: {probe.errors['workers']}"
    remedy = install.export_line(WORKERS_VARIABLE, "12")
    return [Finding("workers", "error", detail, remedy)]


def _cached_batches(workers: int) -> int:
    """Batches in nnU-Net's queues, for training and for validation."""
    return max(6, workers // 2) + max(3, workers // 4)


def _check_shared_memory(workers: int) -> list[Finding]:
    if not SHARED_MEMORY.is_dir() or workers == 0:
        return []
    # each queue is twice as long as its cache; a few batches are in between
    needed = MEGABYTES_PER_BATCH * (2 * _cached_batches(workers) + 6)
    free = shutil.disk_usage(SHARED_MEMORY).free // 10**6
    detail = f"{free} MB free in {SHARED_MEMORY}"
    if free >= needed:
        return [Finding("shared memory", "ok", detail)]
    detail += f"; {workers} workers with large 3-D patches fill {needed} MB and then die"
    remedy = (
        f"in Docker: --shm-size={needed // 1000 + 1}g or --ipc=host; else no workers: "
        f"{install.export_line(WORKERS_VARIABLE, '0')}"
    )
    # below a tenth, the standard patch with a single image does not fit either
    return [Finding("shared memory", "error" if free < needed / 10 else "warning", detail, remedy)]


def _check_open_files(workers: int) -> list[Finding]:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # seven tensors of each batch, each an open file; three pipes for each worker; the rest
    needed = 100 + 7 * _cached_batches(workers) + 3 * workers
    if soft == resource.RLIM_INFINITY:
        return [Finding("open files", "ok", "unlimited")]
    if soft >= 2 * needed:
        return [Finding("open files", "ok", f"{soft} allowed")]
    detail = f"{soft} allowed, about {needed} needed by {workers} workers"
    remedy = "ulimit -n 4096"
    if hard != resource.RLIM_INFINITY and hard < 4096:
        fewer = install.export_line(WORKERS_VARIABLE, "2")
        remedy = f"ask for a higher hard limit of open files ({hard} now), or: {fewer}"
    return [Finding("open files", "error" if soft < needed else "warning", detail, remedy)]
