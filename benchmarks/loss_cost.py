"""Cost of each loss relative to nnU-Net's default: time and peak memory of forward + backward.

    python benchmarks/loss_cost.py                      # the two patches of the cost table
    python benchmarks/loss_cost.py --shape 2 4 96 96 96 --losses UnifiedFocalLoss
    python benchmarks/loss_cost.py --growth             # how time grows with classes and voxels

All losses run in turn, again and again, in one process on the same logits. The table shows the
median over the rounds of the ratio to the baseline of the same round, so that a machine whose
speed drifts does not favour anybody. Memory is the peak of what the profiler sees allocated during
forward and backward, the gradient of the logits included.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable

import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from nnunet_unifiedloss.losses import SegmentationLoss

LossFunction = Callable[[Tensor, Tensor], Tensor]
BASELINE = "nnU-Net DC_and_CE_loss"
SHAPES = [(2, 4, 96, 96, 96), (2, 32, 64, 64, 64)]


def competitors() -> dict[str, LossFunction]:
    """nnU-Net's default, the floor, and MONAI's losses where MONAI is installed."""
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    found: dict[str, LossFunction] = {
        BASELINE: DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss),
        "torch cross_entropy": lambda x, y: functional.cross_entropy(x, y[:, 0].long()),
    }
    try:
        from monai import losses as monai
    except ImportError:
        print("MONAI is not installed: its losses are left out (pip install monai)")
        return found
    common = {"to_onehot_y": True, "softmax": True}
    found["MONAI DiceCELoss"] = monai.DiceCELoss(**common)
    found["MONAI DiceFocalLoss"] = monai.DiceFocalLoss(**common)
    found["MONAI TverskyLoss"] = monai.TverskyLoss(**common)
    return found


def make_batch(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Random logits and labels, as nnU-Net passes them: float labels with a channel axis."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator).requires_grad_()
    target = torch.randint(0, shape[1], (shape[0], 1, *shape[2:]), generator=generator)
    return logits, target.float()


def run_once(loss: LossFunction, logits: Tensor, target: Tensor) -> float:
    """Seconds of one forward and backward pass."""
    logits.grad = None
    start = time.perf_counter()
    loss(logits, target).backward()
    return time.perf_counter() - start


def peak_memory(loss: LossFunction, logits: Tensor, target: Tensor) -> int:
    """Peak of the bytes allocated during forward and backward."""
    logits.grad = None
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss(logits, target).backward()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak


def measure(
    losses: dict[str, LossFunction], shape: tuple[int, ...], rounds: int
) -> dict[str, tuple[float, float]]:
    """Median ratio of time and ratio of memory to the baseline, for each loss."""
    logits, target = make_batch(shape)
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


def print_cost(losses: dict[str, LossFunction], rounds: int, shapes: list[tuple[int, ...]]) -> None:
    """Print the table of ratios in Markdown."""
    results = [measure(losses, shape, rounds) for shape in shapes]
    header = "".join(f" time {shape} | memory {shape} |" for shape in shapes)
    print(f"| loss |{header}\n| --- |" + " --- | --- |" * len(shapes))
    for name in losses:
        cells = "".join(
            f" {time:.2f} | {memory:.2f} |" for time, memory in (r[name] for r in results)
        )
        print(f"| {name} |{cells}")


def print_growth(losses: dict[str, LossFunction], rounds: int) -> None:
    """Print how the time grows with the number of classes and of voxels, and cross entropy's."""
    everything = {"torch cross_entropy": competitors()["torch cross_entropy"], **losses}
    for label, shapes in (
        ("classes", [(2, classes, 48, 48, 48) for classes in (2, 8, 32, 105)]),
        ("voxels", [(2, 4, side, side, side) for side in (32, 64, 96, 128)]),
    ):
        print(f"\n| ms by {label} |" + "".join(f" {shape} |" for shape in shapes))
        print("| --- |" + " --- |" * len(shapes))
        rows: dict[str, list[float]] = {name: [] for name in everything}
        for shape in shapes:
            batch = make_batch(shape)
            times: dict[str, list[float]] = {name: [] for name in everything}
            for _ in range(rounds + 1):
                for name, loss in everything.items():
                    times[name].append(run_once(loss, *batch))
            for name in everything:
                rows[name].append(1e3 * statistics.median(times[name][1:]))
        for name, row in rows.items():
            print(f"| {name} |" + "".join(f" {value:.1f} |" for value in row))


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs="+", help="B C *S; default: the two patches")
    parser.add_argument("--losses", nargs="+", choices=sorted(SegmentationLoss.registry))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--growth", action="store_true", help="growth with classes and voxels")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = arguments.losses or sorted(SegmentationLoss.registry)
    ours: dict[str, LossFunction] = {name: SegmentationLoss.registry[name]() for name in names}
    if arguments.growth:
        print_growth(ours, arguments.rounds)
        return
    shapes = [tuple(arguments.shape)] if arguments.shape else SHAPES
    print_cost({**competitors(), **ours}, arguments.rounds, shapes)


if __name__ == "__main__":
    main()
