"""Doctor's checks of the machine: device, workers, shared memory, open files."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from nnunet_unifiedloss.training import install
from nnunet_unifiedloss.training.finding import Finding
from nnunet_unifiedloss.training.probe import Probe

__all__ = ["check_device", "check_open_files", "check_shared_memory", "check_workers"]

PYTORCH_SITE = "https://pytorch.org/get-started/locally"
SHARED_MEMORY = Path("/dev/shm")
WORKERS_VARIABLE = "nnUNet_n_proc_DA"
# two patches of 128³ voxels with four float32 images, and int16 labels at all resolutions
MEGABYTES_PER_BATCH = 77


def check_device(probe: Probe, device: str | None) -> list[Finding]:
    """Check that PyTorch can use the device."""
    if "device" in probe.errors:
        remedy = f"install a PyTorch for this machine: {PYTORCH_SITE}; or train with -device cpu"
        return [Finding("device", "error", probe.errors["device"], remedy)]
    available, chosen = probe.values["device"]["available"], probe.values["device"]["chosen"]
    remedy = f"train with -device {available[0]}"
    if chosen not in available:
        if chosen == "cuda" and not probe.values["torch"]["gpu_build"]:
            remedy = f"this PyTorch is without CUDA; install another: {PYTORCH_SITE}; or {remedy}"
        elif chosen == "cuda":
            remedy = f"see whether `nvidia-smi` and CUDA_VISIBLE_DEVICES show a GPU; or {remedy}"
        detail = f"{chosen} is not available; there is {', '.join(available)}"
        return [Finding("device", "error", detail, remedy)]
    if device is None and chosen != "cuda":
        detail = f"no CUDA device, which nnUNetv2_train uses by default; there is {chosen}"
        return [Finding("device", "warning", detail, remedy)]
    return [Finding("device", "ok", probe.values["device"]["name"])]


def check_workers(probe: Probe) -> list[Finding]:
    """Check that nnU-Net can read the number of workers that the user has set."""
    value = os.environ.get(WORKERS_VARIABLE)
    if value is None or "workers" not in probe.errors:
        return []
    detail = f"{WORKERS_VARIABLE}={value}: {probe.errors['workers']}"
    return [Finding("workers", "error", detail, install.export_line(WORKERS_VARIABLE, "12"))]


def check_shared_memory(workers: int) -> list[Finding]:
    """Check that the batches of the workers fit into shared memory, which Docker makes small."""
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
        f"in Docker: --shm-size={needed // 1000 + 1}g or --ipc=host; without workers: "
        f"{install.export_line(WORKERS_VARIABLE, '0')}"
    )
    # with less than a tenth not even the standard patch of a single image fits
    return [Finding("shared memory", "error" if free < needed / 10 else "warning", detail, remedy)]


def check_open_files(workers: int) -> list[Finding]:
    """Check that the workers may open as many files as their batches take."""
    if sys.platform == "win32":  # it has no such limit
        return []
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # seven tensors of each batch, each of them a file; three pipes of each worker; the rest
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


def _cached_batches(workers: int) -> int:
    """Number of batches in nnU-Net's queues, for training and for validation."""
    return max(6, workers // 2) + max(3, workers // 4)
