"""Draw one figure for each family of losses, by evaluating the losses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from nnunet_unifiedloss.losses import (
    AsymmetricFocalLoss,
    BoundaryLoss,
    CrossEntropyLoss,
    DiceCrossEntropyLoss,
    DistancePenalizedCrossEntropyLoss,
    FocalLoss,
    FocalTverskyLoss,
    HausdorffDTLoss,
    LogCoshDiceLoss,
    SegmentationLoss,
    StructuralSimilarityLoss,
    SymmetricFocalTverskyLoss,
    TverskyLoss,
    UnifiedFocalLoss,
)

matplotlib.use("agg")
import matplotlib.pyplot as plt

LOGITS = torch.linspace(-6, 6, 241, dtype=torch.float64)


def voxel(loss: SegmentationLoss, label: int) -> tuple[Tensor, Tensor, Tensor]:
    """p_t, loss and size of the gradient of one voxel of two classes."""
    values, gradients = [], []
    for margin in LOGITS:
        logits = torch.zeros(1, 2, 1, 1, dtype=torch.float64)
        logits[:, label] = margin
        logits.requires_grad_()
        value = loss(logits, torch.full((1, 1, 1, 1), label))
        value.backward()
        values.append(value.item())
        gradients.append(logits.grad[0, label].abs().item())
    return LOGITS.sigmoid(), torch.tensor(values), torch.tensor(gradients)


def distribution(axes: list[plt.Axes]) -> None:
    """Cross entropy and focal losses against p_t."""
    chosen = [CrossEntropyLoss(), *(FocalLoss(gamma=g) for g in (0.5, 2, 5))]
    chosen += [AsymmetricFocalLoss(delta=d, gamma=g) for d, g in ((0.7, 2), (0.9, 2), (0.7, 0.5))]
    for index, loss in enumerate(chosen):
        for label, style in ((1, "-"), (0, "--")):
            p_t, value, gradient = voxel(loss, label)
            name = describe(loss, "gamma", "delta") if label else None
            for ax, y in zip(axes, (value, gradient), strict=True):
                ax.plot(p_t, y, style, color=f"C{index}", label=name)
    labels(axes, "p_t", "loss", "|gradient|", top=(4, 1.5))


def region(axes: list[plt.Axes]) -> None:
    """Overlap losses against the Tversky index."""
    chosen = [TverskyLoss(), *(FocalTverskyLoss(gamma=g) for g in (0.75, 2))]
    chosen += [SymmetricFocalTverskyLoss(gamma=g, include_background=False) for g in (0.5, 0.75)]
    chosen += [LogCoshDiceLoss()]
    target = torch.zeros(1, 1, 1, 100, dtype=torch.int64)
    target[..., :10] = 1
    for loss in chosen:
        index, values = [], []
        for margin in LOGITS:
            logits = torch.full((1, 2, 1, 100), -40.0, dtype=torch.float64)
            logits[:, 0] = 0
            logits[:, 1, :, :10] = margin
            p = margin.sigmoid()
            # the weight of false negatives; the index is Dice where it is ½
            beta = getattr(loss, "delta", getattr(loss, "beta", 0.5))
            index.append((p / (p + beta * (1 - p))).item())
            values.append(loss(logits, target).item())
        x, y = torch.tensor(index), torch.tensor(values)
        derivative = torch.gradient(y, spacing=(x,))[0].abs()
        for ax, line in zip(axes, (y, derivative), strict=True):
            ax.plot(x, line, label=describe(loss, "gamma"))
    labels(axes, "Tversky index", "loss", "|derivative|", top=(1, 3))


def boundary(axes: list[plt.Axes]) -> None:
    """Gradients against the distance from the boundary."""
    target = torch.zeros(1, 1, 1, 81, dtype=torch.int64)
    target[..., :31] = 1
    x = torch.arange(81) - 30.5
    left = [HausdorffDTLoss(alpha=a) for a in (0.5, 1, 2)]
    right = [BoundaryLoss(), DistancePenalizedCrossEntropyLoss(), CrossEntropyLoss()]
    for ax, chosen in zip(axes, (left, right), strict=True):
        for loss in chosen:
            logits = torch.zeros(1, 2, 1, 81, dtype=torch.float64, requires_grad=True)
            loss(logits, target).backward()
            ax.plot(x, logits.grad[0, 1, 0].abs(), label=describe(loss, "alpha"))
        ax.set_yscale("log")
        ax.set_xlabel("distance from the boundary, voxels")
        ax.set_ylabel("|gradient|")


def structural(axes: list[plt.Axes]) -> None:
    """Structural similarity loss of a voxel at an edge."""
    target = torch.zeros(1, 1, 9, 9, dtype=torch.int64)
    target[..., :5] = 1
    for c, weight in ((0.01, 0.5), (0.1, 0.5), (0.01, 0.0), (0.01, 1.0)):
        loss = StructuralSimilarityLoss(c=c, weight=weight)
        values, gradients = [], []
        for margin in LOGITS:
            logits = torch.where(target == 1, 4.0, -4.0).double()
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
            logits[0, 1, 4, 4] = margin
            logits.requires_grad_()
            value = loss(logits, target)
            value.backward()
            values.append(value.item())
            gradients.append(logits.grad[0, 1, 4, 4].abs().item())
        for ax, y in zip(axes, (values, gradients), strict=True):
            ax.plot(LOGITS.sigmoid(), y, label=f"c={c}, weight={weight}")
    labels(axes, "p of the voxel", "loss", "|gradient|")


def compound(axes: list[plt.Axes]) -> None:
    """Compound losses against p_t, which is the same in all voxels."""
    chosen: list[SegmentationLoss] = [DiceCrossEntropyLoss()]
    chosen += [UnifiedFocalLoss(gamma=g) for g in (0, 0.2, 0.5, 0.8)]
    chosen += [UnifiedFocalLoss(delta=d) for d in (0.4, 0.8)]
    target = torch.zeros(1, 1, 1, 100, dtype=torch.int64)
    target[..., :1] = 1
    for loss in chosen:
        values, gradients = [], []
        for margin in LOGITS:
            logits = torch.zeros(1, 2, 1, 100, dtype=torch.float64)
            logits[:, 1] = torch.where(target[:, 0] == 1, margin, -margin)
            logits.requires_grad_()
            value = loss(logits, target)
            value.backward()
            values.append(value.item())
            gradients.append(logits.grad[0, 1, 0, 0].abs().item())
        for ax, y in zip(axes, (values, gradients), strict=True):
            ax.plot(LOGITS.sigmoid(), y, label=describe(loss, "delta", "gamma"))
    labels(axes, "p_t", "loss", "|gradient| of a foreground voxel", top=(3, None))


def describe(loss: SegmentationLoss, *parameters: str) -> str:
    """Name and parameters of a loss, for a legend."""
    shown = [f"{p}={getattr(loss, p)}" for p in parameters if getattr(loss, p, None) is not None]
    return " ".join([type(loss).__name__.removesuffix("Loss"), *shown])


def labels(
    axes: list[plt.Axes],
    x: str,
    *y: str,
    top: tuple[float | None, float | None] = (None, None),
) -> None:
    """Label both axes."""
    for ax, label, limit in zip(axes, y, top, strict=True):
        ax.set_xlabel(x)
        ax.set_ylabel(label)
        ax.set_ylim(0, limit)


def draw_all(folder: Path) -> None:
    """Draw the figure of every family."""
    folder.mkdir(exist_ok=True)
    drawings: list[Callable[[list[plt.Axes]], None]] = [
        distribution, region, boundary, structural, compound
    ]  # fmt: skip
    for draw in drawings:
        figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
        draw(list(axes))
        for ax in axes:
            ax.grid(alpha=0.3)
            ax.legend(fontsize=7)
        figure.savefig(folder / f"{draw.__name__}.png", dpi=110)
        plt.close(figure)
