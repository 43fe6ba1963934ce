"""Cost of each loss relative to nnU-Net's default: time and peak memory of forward + backward.

    python benchmarks/loss_cost.py                      # the two patches of the cost table
    python benchmarks/loss_cost.py --shape 2 4 96 96 96 --losses UnifiedFocalLoss
    python benchmarks/loss_cost.py --regions --ignore   # region-based training, ignored voxels
    python benchmarks/loss_cost.py --growth             # how time grows with classes and voxels

All losses run in turn, again and again, in one process on the same logits. The table shows the
median over the rounds of the ratio to the baseline of the same round, so that a machine whose
speed drifts does not favour anybody. Time is processor time, by default of one thread: unlike the
clock on the wall it does not depend on what else the machine does. Memory is the peak of what the
profiler sees allocated during forward and backward, the gradient of the logits included.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable

import torch
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
    """nnU-Net's default for this kind of target, the floor, MONAI's losses where installed."""
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
    return found if ignore else found | monai_losses()


def monai_losses() -> dict[str, LossFunction]:
    """Losses of MONAI that have a counterpart here."""
    try:
        from monai import losses as monai
    except ImportError:
        print("MONAI is not installed: its losses are left out (pip install monai)")
        return {}
    return {
        f"MONAI {name}": getattr(monai, name)(to_onehot_y=True, softmax=True)
        for name in ("DiceCELoss", "DiceFocalLoss", "TverskyLoss")
    }


def make_batch(
    shape: tuple[int, ...], *, regions: bool = False, ignore: bool = False
) -> tuple[Tensor, Tensor]:
    """Random logits and a target as nnU-Net passes it: float labels or bool regions."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator).requires_grad_()
    ignored = torch.rand(shape[0], 1, *shape[2:], generator=generator) < 0.2
    if regions:
        target = torch.rand(shape, generator=generator) < 0.1
        return logits, torch.cat([target, ignored], 1) if ignore else target
    labels = torch.randint(0, shape[1], ignored.shape, generator=generator).float()
    return logits, labels.masked_fill(ignored, IGNORE_LABEL) if ignore else labels


def run_once(loss: LossFunction, logits: Tensor, target: Tensor) -> float:
    """Seconds of processor time of one forward and backward pass."""
    logits.grad = None
    start = time.process_time()
    loss(logits, target).backward()
    return time.process_time() - start


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
    losses: dict[str, LossFunction], batch: tuple[Tensor, Tensor], rounds: int
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
    losses: dict[str, LossFunction], batches: list[tuple[Tensor, Tensor]], rounds: int
) -> None:
    """Print the table of ratios in Markdown."""
    shapes = [tuple(logits.shape) for logits, _ in batches]
    header = "".join(f" time {shape} | memory {shape} |" for shape in shapes)
    print(f"| loss |{header}\n| --- |" + " --- | --- |" * len(shapes))
    results = [measure(losses, batch, rounds) for batch in batches]
    for name in losses:
        cells = "".join(
            f" {time:.2f} | {memory:.2f} |" for time, memory in (r[name] for r in results)
        )
        print(f"| {name} |{cells}")


def print_growth(losses: dict[str, LossFunction], rounds: int) -> None:
    """Print how the time grows with the number of classes and of voxels, and cross entropy's."""
    floor = "torch cross_entropy"
    everything = {floor: competitors(regions=False, ignore=False)[floor], **losses}
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
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--regions", action="store_true", help="region-based training")
    parser.add_argument("--ignore", action="store_true", help="with ignored voxels")
    parser.add_argument("--growth", action="store_true", help="growth with classes and voxels")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = arguments.losses or sorted(SegmentationLoss.registry)
    mode = {"regions": arguments.regions, "ignore": arguments.ignore}
    options = {
        "regions": arguments.regions,
        "ignore_label": IGNORE_LABEL if arguments.ignore else None,
    }
    ours: dict[str, LossFunction] = {
        name: SegmentationLoss.registry[name](**options) for name in names
    }
    if arguments.growth:
        print_growth(ours, arguments.rounds)
        return
    shapes = [tuple(arguments.shape)] if arguments.shape else SHAPES
    batches = [make_batch(shape, **mode) for shape in shapes]
    print_cost({**competitors(**mode), **ours}, batches, arguments.rounds)


if __name__ == "__main__":
    main()
