"""Norm of each loss's gradient relative to that of nnU-Net's default, on the same logits.

    python benchmarks/gradient_norm.py
    python benchmarks/gradient_norm.py --json benchmarks/measured.json   # for the pages made of it
    python benchmarks/gradient_norm.py --trainers nnUNetTrainerUnifiedFocal_gamma0.3

SGD feels the scale of a loss: with a quarter of the gradient it takes steps of a quarter. Dividing
nnU-Net's learning rate of 0.01 by the ratio makes trainings comparable. The ratio changes while a
network learns, so it is given for logits of three stages (a margin for the true class, blurred as
network outputs are, plus noise), on patches with a small lesion of two classes. Class weights are
those of the patch's labels, weights that follow the training those of its middle.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from measured import save
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor
from torch.nn import functional

from nnunet_unifiedloss.losses import SegmentationLoss
from nnunet_unifiedloss.training.catalogue import catalogue
from nnunet_unifiedloss.training.class_weights import inverse_frequencies
from nnunet_unifiedloss.training.names import TrainerName, parse

STAGES = {"untrained": (0.0, 0.2), "learning": (2.0, 1.0), "trained": (8.0, 1.5)}
SIDE = 64


def lesion(radius: float) -> Tensor:
    """Labels (2, 1, *S) with a ball of class 1 that holds a smaller ball of class 2."""
    axis = torch.arange(SIDE) - SIDE / 2
    distance = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).pow(2).sum(0).sqrt()
    labels = (distance < radius).long() + (distance < radius / 2).long()
    return labels[None, None].expand(2, 1, SIDE, SIDE, SIDE).float()


def make_logits(target: Tensor, margin: float, noise: float) -> Tensor:
    """Logits that prefer the true class by a margin away from its border."""
    generator = torch.Generator().manual_seed(0)
    one_hot = functional.one_hot(target[:, 0].long(), 3).movedim(-1, 1).float()
    blurred = functional.avg_pool3d(one_hot, 5, 1, 2, count_include_pad=False)
    return margin * blurred + noise * torch.randn(one_hot.shape, generator=generator)


def gradient_norm(loss: torch.nn.Module, logits: Tensor, target: Tensor) -> float:
    """L2 norm of the gradient with respect to the logits."""
    logits = logits.clone().requires_grad_()
    loss(logits, target).backward()
    return float(logits.grad.norm())


def as_trained(name: TrainerName, logits: Tensor, target: Tensor) -> SegmentationLoss:
    """The loss with what its trainer would have set in the middle of a training on such patches."""
    parameters = dict(name.parameters)
    if "class_weights" in name.loss.defaults() and "class_weights" not in parameters:
        voxels = target.long().flatten().bincount(minlength=logits.shape[1]).tolist()
        parameters["class_weights"] = inverse_frequencies(voxels)
    loss = name.loss(batch_dice=True, **parameters)
    if loss.scheduled:
        terms = loss.terms(logits, target)
        means = {name: float(term) / loss.weights.get(name, 1) for name, term in terms.items()}
        loss.start_epoch(500, 1000, means)
    return loss


def main() -> None:
    """Print the table of ratios in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="add the geometric means to a file")
    parser.add_argument(
        "--trainers", nargs="+", metavar="TRAINER", help="these only, with the parameters they name"
    )
    arguments = parser.parse_args()
    names = arguments.trainers or [entry.trainer for entry in catalogue()]
    batches = {
        f"{stage}, {100 * (target > 0).float().mean():.0f} %": (make_logits(target, *level), target)
        for target in (lesion(20), lesion(8))
        for stage, level in STAGES.items()
    }
    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    default = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
    print("| loss |" + "".join(f" {name} |" for name in batches) + " geometric mean |")
    print("| --- |" + " --- |" * (len(batches) + 1))
    means = {}
    for trainer in names:
        parsed = parse(trainer)
        ratios = [
            gradient_norm(as_trained(parsed, *b), *b) / gradient_norm(default, *b)
            for b in batches.values()
        ]
        name = trainer if arguments.trainers else parsed.loss.__name__
        means[name] = float(torch.tensor(ratios).log().mean().exp())
        print(f"| {name} |" + "".join(f" {r:.2f} |" for r in [*ratios, means[name]]), flush=True)
    if arguments.json:
        save(arguments.json, gradient=means)


if __name__ == "__main__":
    main()
