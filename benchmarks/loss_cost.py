"""Cost of each loss relative to nnU-Net's default: time and peak memory of forward + backward.

    python benchmarks/loss_cost.py                      # the two patches of the cost table
    python benchmarks/loss_cost.py --compile            # compiled, as nnU-Net does on a GPU
    python benchmarks/loss_cost.py --shape 2 4 96 96 96 --losses UnifiedFocalLoss
    python benchmarks/loss_cost.py --regions --ignore   # region-based training, ignored voxels
    python benchmarks/loss_cost.py --growth growth.png        # time against classes and voxels
    python benchmarks/loss_cost.py --distances          # beside MONAI's and exacta's losses
    python benchmarks/loss_cost.py --json benchmarks/measured.json   # for the pages made of it
    python benchmarks/loss_cost.py --device cuda        # any of these on a GPU

All losses run in turn, again and again, in one process on the same logits. The table shows the
median over the rounds of the ratio to the baseline of the same round, so that a machine whose speed
drifts favours no loss. Time is wall time with torch's default number of threads. On a GPU it is the
GPU's time: the GPU is busy while the host submits the work, as in training. Memory is the peak of
what is allocated during forward and backward, the gradient of the logits included.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from measured import save
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from nnunet_unifiedloss.losses import SegmentationLoss

LossFunction = Callable[[Tensor, Tensor], Tensor]
BASELINE = "nnU-Net's default"
IGNORE_LABEL = 255
SHAPES = [(2, 4, 96, 96, 96), (2, 32, 64, 64, 64)]


def competitors(*, regions: bool, ignore: bool) -> dict[str, LossFunction]:
    """nnU-Net's default for this kind of target, and losses of other packages."""
    dice = {"batch_dice": False, "smooth": 1e-5, "ddp": False}
    if regions:
        default = DC_and_BCE_loss(
            {},
            {**dice, "do_bg": True},
            use_ignore_label=ignore,
            dice_class=MemoryEfficientSoftDiceLoss,
        )
        return {BASELINE: default}
    default = DC_and_CE_loss(
        {**dice, "do_bg": False},
        {},
        ignore_label=IGNORE_LABEL if ignore else None,
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    cross_entropy = functional.cross_entropy
    found: dict[str, LossFunction] = {
        BASELINE: default,
        "torch cross_entropy": lambda x, y: cross_entropy(
            x, y[:, 0].long(), ignore_index=IGNORE_LABEL
        ),
    }
    return found if ignore else found | monai_losses() | exacta_losses()


def compiled(losses: dict[str, LossFunction]) -> dict[str, LossFunction]:
    """Compiled where nnU-Net and its trainers compile them, which they do on a GPU."""
    # all losses share the code of the same method, of which torch would compile eight only
    config = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    setattr(config, limit, 2 * len(losses))
    losses[BASELINE].dc = torch.compile(losses[BASELINE].dc)  # type: ignore[attr-defined]
    return {
        name: torch.compile(loss) if getattr(loss, "compiles", False) else loss
        for name, loss in losses.items()
    }


def monai_losses() -> dict[str, LossFunction]:
    """Losses of MONAI that have a counterpart here."""
    from monai import losses as monai

    names = ("DiceCELoss", "DiceFocalLoss", "TverskyLoss")
    return {f"MONAI {name}": getattr(monai, name)(to_onehot_y=True, softmax=True) for name in names}


def exacta_losses() -> dict[str, LossFunction]:
    """Losses of exacta that have a counterpart here; they take labels without a channel."""
    from exacta import losses as exacta

    names = ("DiceCELoss", "DiceFocalLoss", "TverskyLoss", "LovaszSoftmaxLoss")
    found = {name: getattr(exacta, name)() for name in names}
    return {
        f"exacta {name}": lambda x, y, loss=loss: loss(x, y[:, 0].long())
        for name, loss in found.items()
    }


def make_batch(
    shape: tuple[int, ...], device: torch.device, *, regions: bool = False, ignore: bool = False
) -> tuple[Tensor, Tensor]:
    """Random logits and a target as nnU-Net passes it: float labels or bool regions."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator).to(device).requires_grad_()
    ignored = torch.rand(shape[0], 1, *shape[2:], generator=generator) < 0.2
    if regions:
        target = torch.rand(shape, generator=generator) < 0.1
        return logits, (torch.cat([target, ignored], 1) if ignore else target).to(device)
    labels = torch.randint(0, shape[1], ignored.shape, generator=generator).float()
    return logits, (labels.masked_fill(ignored, IGNORE_LABEL) if ignore else labels).to(device)


def run_once(loss: LossFunction, logits: Tensor, target: Tensor) -> float:
    """Seconds of one forward and backward pass."""
    logits.grad = None
    if logits.is_cuda:
        return run_once_on_gpu(loss, logits, target)
    start = time.perf_counter()
    loss(logits, target).backward()
    return time.perf_counter() - start


def run_once_on_gpu(loss: LossFunction, logits: Tensor, target: Tensor) -> float:
    """Seconds between two marks in the queue of the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    filler = torch.ones(8192, 8192, device=logits.device)
    torch.cuda.synchronize(logits.device)
    for _ in range(4):
        torch.mm(filler, filler)
    start.record()
    loss(logits, target).backward()
    end.record()
    torch.cuda.synchronize(logits.device)
    return start.elapsed_time(end) / 1e3


def peak_memory(loss: LossFunction, logits: Tensor, target: Tensor) -> int:
    """Peak of the bytes allocated during forward and backward."""
    logits.grad = None
    gc.collect()
    if logits.is_cuda:
        torch.cuda.reset_peak_memory_stats(logits.device)
        before = torch.cuda.memory_allocated(logits.device)
        loss(logits, target).backward()
        return torch.cuda.max_memory_allocated(logits.device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss(logits, target).backward()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak


def measure(
    losses: dict[str, LossFunction],
    batch: tuple[Tensor, Tensor],
    rounds: int,
) -> dict[str, tuple[float, float]]:
    """Median ratio of time and ratio of memory to the baseline, for each loss."""
    logits, target = batch
    times: dict[str, list[float]] = {name: [] for name in losses}
    for loss in losses.values():
        run_once(loss, logits, target)  # warm up
    for _ in range(rounds):
        for name, loss in losses.items():
            times[name].append(run_once(loss, logits, target))
    baseline_memory = peak_memory(losses[BASELINE], logits, target)
    return {
        name: (
            statistics.median(a / b for a, b in zip(times[name], times[BASELINE], strict=True)),
            peak_memory(loss, logits, target) / baseline_memory,
        )
        for name, loss in losses.items()
    }


def print_cost(
    losses: dict[str, LossFunction],
    batches: list[tuple[Tensor, Tensor]],
    rounds: int,
) -> list[dict[str, tuple[float, float]]]:
    """Print the table of ratios in Markdown and return it for each batch.

    Losses with distance transforms are measured on the first patch only.
    """
    shapes = [tuple(logits.shape) for logits, _ in batches]
    header = "".join(f" time {shape} | memory {shape} |" for shape in shapes)
    print(f"| loss |{header}\n| --- |" + " --- | --- |" * len(shapes))
    quick = {name: loss for name, loss in losses.items() if getattr(loss, "compiles", True)}
    results = [
        measure(losses if index == 0 else quick, batch, rounds)
        for index, batch in enumerate(batches)
    ]
    for name in losses:
        cells = "".join(
            f" {r[name][0]:.2f} | {r[name][1]:.2f} |" if name in r else " | |" for r in results
        )
        print(f"| {name} |{cells}")
    return results


def print_growth(
    losses: dict[str, LossFunction], device: torch.device, rounds: int, figure: Path
) -> None:
    """Print and plot how the time grows with the number of classes and of voxels."""
    floor = "torch cross_entropy"
    everything = {floor: competitors(regions=False, ignore=False)[floor], **losses}
    tables = {
        "classes": ([(2, classes, 48, 48, 48) for classes in (2, 8, 32, 105)], 1),
        "voxels": ([(2, 4, side, side, side) for side in (32, 64, 96, 128)], 2),
    }
    plots, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained", sharey=True)
    for ax, (label, (shapes, axis)) in zip(axes, tables.items(), strict=True):
        print(f"\n| ms by {label} |" + "".join(f" {shape} |" for shape in shapes))
        print("| --- |" + " --- |" * len(shapes))
        rows = growth(everything, [make_batch(shape, device) for shape in shapes], rounds)
        for index, (name, row) in enumerate(rows.items()):
            print(f"| {name} |" + "".join(f" {value:.1f} |" for value in row))
            style: dict[str, Any] = {"color": "black", "linewidth": 3}
            if name != floor:
                style = {"color": f"C{index % 10}", "linestyle": ("-", "--", ":")[index // 10 % 3]}
            x = [shape[1] if axis == 1 else math.prod((shape[0], *shape[2:])) for shape in shapes]
            ax.loglog(x, row, marker=".", label=name.removesuffix("Loss"), **style)
        ax.set_xlabel(f"{label} (log)")
    axes[0].set_ylabel("ms (log)")
    plots.legend(*axes[0].get_legend_handles_labels(), loc="outside right", fontsize=6)
    plots.savefig(figure, dpi=110)


def growth(
    losses: dict[str, LossFunction], batches: list[tuple[Tensor, Tensor]], rounds: int
) -> dict[str, list[float]]:
    """Median time in ms of each loss for each batch."""
    rows: dict[str, list[float]] = {name: [] for name in losses}
    for batch in batches:
        times: dict[str, list[float]] = {name: [] for name in losses}
        for _ in range(rounds + 1):
            for name, loss in losses.items():
                times[name].append(run_once(loss, *batch))
        for name in losses:
            rows[name].append(1e3 * statistics.median(times[name][1:]))
    return rows


def print_distances(rounds: int, shape: tuple[int, ...], device: torch.device) -> None:
    """Print the time of the losses with distance transforms relative to MONAI's HausdorffDTLoss.

    The patch holds a few blobs, because noise takes longer than objects.
    """
    from exacta import losses as exacta
    from monai.losses import HausdorffDTLoss as Monai
    from scipy.ndimage import gaussian_filter

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(shape, generator=generator).numpy()
    smooth = torch.from_numpy(gaussian_filter(noise, (0, 0, *(6 for _ in shape[2:]))))
    logits = (smooth / smooth.std()).to(device).requires_grad_()
    target = smooth.roll(3, -1).argmax(1, keepdim=True).float().to(device)
    spacing = (1.0,) * (len(shape) - 2)
    losses: dict[str, LossFunction] = {
        "MONAI HausdorffDTLoss": Monai(softmax=True, to_onehot_y=True, include_background=False)
    }
    for name in ("HausdorffDTLoss", "BoundaryLoss"):
        loss = getattr(exacta, name)()
        losses[f"exacta {name}"] = lambda x, y, loss=loss: loss(x, y[:, 0].long(), spacing=spacing)
    losses |= {n: c() for n, c in sorted(SegmentationLoss.registry.items()) if not c.compiles}
    times: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(rounds):
        for name, loss in losses.items():
            times[name].append(run_once(loss, logits, target))
    print(f"| loss on {shape} | times faster than MONAI's HausdorffDTLoss |\n| --- | --- |")
    reference = times["MONAI HausdorffDTLoss"]
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(reference, values, strict=True))
        print(f"| {name} | {ratio:.1f} |")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs="+", help="B C *S; default: the two patches")
    parser.add_argument("--losses", nargs="+", choices=sorted(SegmentationLoss.registry))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--compile", action="store_true", help="as nnU-Net does on a GPU")
    parser.add_argument("--regions", action="store_true", help="region-based training")
    parser.add_argument("--ignore", action="store_true", help="with ignored voxels")
    parser.add_argument("--growth", type=Path, help="plot growth with classes and voxels")
    parser.add_argument("--distances", action="store_true", help="beside MONAI's and exacta's")
    parser.add_argument("--json", type=Path, help="add the ratios of the first patch to a file")
    given = parser.parse_args()
    elsewhere = given.regions or given.ignore or given.compile or given.device.type != "cpu"
    if given.json and elsewhere:
        parser.error(
            f"--json {given.json}: the file is for labels on the CPU; leave out --regions, "
            "--ignore, --compile and --device"
        )
    return given


def main() -> None:
    """Print the tables that the command line asks for."""
    arguments = parse_arguments()
    names = arguments.losses or sorted(SegmentationLoss.registry)
    mode = {"regions": arguments.regions, "ignore": arguments.ignore}
    options = {
        "regions": arguments.regions,
        "ignore_label": IGNORE_LABEL if arguments.ignore else None,
    }
    ours: dict[str, LossFunction] = {
        name: SegmentationLoss.registry[name](**options) for name in names
    }
    if arguments.distances:
        shape = tuple(arguments.shape or (2, 3, 128, 128, 128))
        print_distances(arguments.rounds, shape, arguments.device)
        return
    if arguments.growth:
        ours = {name: loss for name, loss in ours.items() if loss.compiles}
        print_growth(ours, arguments.device, arguments.rounds, arguments.growth)
        return
    shapes = [tuple(arguments.shape)] if arguments.shape else SHAPES
    batches = [make_batch(shape, arguments.device, **mode) for shape in shapes]
    losses = {**competitors(**mode), **ours}
    losses = compiled(losses) if arguments.compile else losses
    results = print_cost(losses, batches, arguments.rounds)
    if arguments.json:
        time_, memory = ({n: results[0][n][i] for n in ours} for i in (0, 1))
        save(arguments.json, time=time_, memory=memory)


if __name__ == "__main__":
    main()
