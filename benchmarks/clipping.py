r"""Gradient norm of a network before nnU-Net clips it at 12, while it trains.

    export nnUNet_n_proc_DA=0
    python benchmarks/clipping.py -d 4 -c 2d -tr nnUNetTrainerDiceCrossEntropy \
        nnUNetTrainerUnifiedFocal nnUNetTrainerUnifiedFocal_scale1 -device cpu

The data set must be preprocessed. With nnUNet_n_proc_DA=0, all trainers get the same batches. Each
trainer trains for some iterations on fold 0 in a temporary folder, with nnU-Net's data augmentation
and the learning rate of its first epoch. Every row of the table stands for a range of iterations:
median and largest norm, share of the iterations that were clipped, mean of each term of the loss
without scale.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import statistics
import tempfile
from typing import Any

import numpy as np
import torch

from nnunet_unifiedloss.training.install import trainers_folder

CLIPPED_AT = 12  # in nnUNetTrainer.train_step
HEADER = "| trainer | iterations | median norm | largest norm | clipped | terms |"


def record_norms() -> list[float]:
    """The list to which nnU-Net's calls of clip_grad_norm_ from now on append the norm."""
    clip = torch.nn.utils.clip_grad_norm_
    norms: list[float] = []

    def clip_and_record(*arguments: Any, **options: Any) -> torch.Tensor:
        norms.append(float(norm := clip(*arguments, **options)))
        return norm

    torch.nn.utils.clip_grad_norm_ = clip_and_record
    return norms


def start(name: str, dataset: str, configuration: str, device: str) -> Any:
    """A trainer at its first iteration, with the same random numbers for every trainer."""
    from nnunetv2.run.run_training import get_trainer_from_args

    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = get_trainer_from_args(
            dataset, configuration, 0, name, device=torch.device(device)
        )
        trainer.on_train_start()
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
    return trainer


def train(trainer: Any, ends: list[int], norms: list[float]) -> None:
    """Train, and print a row of the table for each range of iterations."""
    for first, last in zip([0, *ends], ends, strict=False):
        norms.clear()
        for _ in range(first, last):
            trainer.train_step(next(trainer.dataloader_train))
        clipped = sum(norm > CLIPPED_AT for norm in norms) / len(norms)
        recorded = getattr(trainer, "recorded_loss", None)
        terms = recorded.pop_means() if recorded else {}
        print(
            f"| {type(trainer).__name__} | {first + 1} to {last} | {statistics.median(norms):.2f} "
            f"| {max(norms):.2f} | {clipped:.0%} | "
            f"{', '.join(f'{name} {value:.3f}' for name, value in terms.items())} |",
            flush=True,
        )


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-d", required=True, metavar="DATASET", help="name or number")
    parser.add_argument("-c", required=True, metavar="CONFIGURATION")
    parser.add_argument("-tr", nargs="+", required=True, metavar="TRAINER")
    parser.add_argument("-device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument(
        "--ends", nargs="+", type=int, default=[10, 50, 250, 500], metavar="N",
        help="last iteration of each row",
    )  # fmt: skip
    arguments = parser.parse_args()
    os.environ["nnUNet_extTrainer"] = str(trainers_folder())
    norms = record_norms()
    print(HEADER, "| --- " * (HEADER.count("|") - 1) + "|", sep="\n")
    for name in arguments.tr:
        with tempfile.TemporaryDirectory() as os.environ["nnUNet_results"]:
            trainer = start(name, arguments.d, arguments.c, arguments.device)
            train(trainer, arguments.ends, norms)


if __name__ == "__main__":
    main()
