"""Norm of each loss's gradient relative to that of nnU-Net's default, on the same logits.

    python benchmarks/gradient_norm.py
    python benchmarks/gradient_norm.py --json benchmarks/measured.json   # for the pages made of it
    python benchmarks/gradient_norm.py --trainers nnUNetTrainerUnifiedFocal_gamma0.3

SGD is sensitive to the scale of a loss. The ratio changes while a network learns and with the
share of foreground. It is therefore measured for logits of three stages (a margin for the true
class, blurred as network outputs are, plus noise), on patches with a lesion of two classes that
takes 13 %, 1 % or 0.03 % of the voxels, and on patches without foreground. Class weights are those
of the patch's labels, weights that follow the training those of its middle. A trainer's scale is
left out.

A loss is flat if its largest ratio is at most 2.5 times its smallest. Only the gradient of a flat
loss can be brought to the default's size by a constant. This constant, the scale of the loss,
is 1 / the geometric mean of the ratios for patches with at least 1 % of foreground.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
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
RADII = {"13 %": 20, "1 %": 8, "0.03 %": 2.7, "none": 0}
COMMON = ("13 %", "1 %")
FLAT = 2.5  # Unified Focal 1.94, DiceFocal 2.33; the next is SymmetricUnifiedFocal with 3.65
SIDE = 64


@dataclass(frozen=True)
class Ratios:
    """Gradient norms of a loss relative to nnU-Net's default.

    Attributes:
        values: (share of foreground, stage) → ratio.
    """

    values: dict[tuple[str, str], float]

    @property
    def mean(self) -> float:
        """The geometric mean for patches with at least 1 % of foreground."""
        common = [ratio for (share, _), ratio in self.values.items() if share in COMMON]
        return float(torch.tensor(common).log().mean().exp())

    @property
    def smallest(self) -> float:
        """The smallest ratio of all patches."""
        return min(self.values.values())

    @property
    def largest(self) -> float:
        """The largest ratio of all patches."""
        return max(self.values.values())

    @property
    def flat(self) -> bool:
        """True if a constant describes the ratio."""
        return self.largest <= FLAT * self.smallest

    @property
    def scale(self) -> float:
        """The factor that brings the gradient to the default's size, or 1 if none does."""
        return float(f"{1 / round(self.mean, 2):.3g}") if self.flat else 1.0


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


def make_batch(share: str, stage: str) -> tuple[Tensor, Tensor]:
    """Logits and target of a share of foreground and a stage."""
    target = lesion(RADII[share])
    return make_logits(target, *STAGES[stage]), target


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


def measure(
    names: Iterable[str], shares: Iterable[str] = RADII, stages: Iterable[str] = STAGES
) -> dict[str, Ratios]:
    """The ratios of each trainer's loss."""
    options = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    default = DC_and_CE_loss(options, {}, dice_class=MemoryEfficientSoftDiceLoss)
    batches = {key: make_batch(*key) for key in itertools.product(shares, stages)}
    norms = {key: gradient_norm(default, *batch) for key, batch in batches.items()}
    return {
        name: Ratios(
            {
                key: gradient_norm(as_trained(parse(name), *batch), *batch) / norms[key]
                for key, batch in batches.items()
            }
        )
        for name in names
    }


def table(rows: dict[str, Ratios]) -> str:
    """The ratios in Markdown."""
    keys = [f"{stage}, {share}" for share in RADII for stage in STAGES]
    header = ["loss", *keys, "mean", "smallest", "largest", "largest / smallest", "scale"]
    lines = [header, ["---"] * len(header)]
    for name, ratios in rows.items():
        spread = ratios.largest / ratios.smallest if ratios.smallest else float("inf")
        numbers = [*ratios.values.values(), ratios.mean, ratios.smallest, ratios.largest]
        verdict = f"{spread:.3g}: {'flat' if ratios.flat else 'not flat'}"
        lines.append([name, *(f"{n:.2f}" for n in numbers), verdict, f"{ratios.scale:g}"])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Print the table of ratios in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="add the results to a file")
    parser.add_argument(
        "--trainers", nargs="+", metavar="TRAINER", help="these only, with the parameters they name"
    )
    arguments = parser.parse_args()
    losses = {entry.trainer: entry.loss for entry in catalogue()}
    found = measure(arguments.trainers or list(losses))
    rows = {name if arguments.trainers else losses[name]: row for name, row in found.items()}
    print(table(rows))
    if arguments.json:
        save(
            arguments.json,
            gradient={name: row.mean for name, row in rows.items()},
            gradient_smallest={name: row.smallest for name, row in rows.items()},
            gradient_largest={name: row.largest for name, row in rows.items()},
            scale={name: row.scale for name, row in rows.items()},
        )


if __name__ == "__main__":
    main()
