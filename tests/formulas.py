"""The losses in plain NumPy, written from the papers' formulas; independent of the package.

A *problem* is one classification problem of one sample after ignored voxels were cut out:
logarithms of probabilities (K, V) and labels (V,). Labels mode makes one problem per sample,
regions mode one per sample and region.
"""

from __future__ import annotations

import numpy as np


def problems(logits, target, *, regions=False, ignore_label=None):
    """Groups of problems: a list (one item for each region) of lists (one item for each sample)."""
    batch, channels = logits.shape[:2]
    groups = []
    for region in range(channels if regions else 1):
        group = []
        for sample in range(batch):
            x = logits[sample].reshape(channels, -1).astype(np.float64)
            if regions:
                y = target[sample, region].reshape(-1).astype(int)
                kept = np.ones(y.size, bool)
                if ignore_label is not None:
                    kept = target[sample, channels].reshape(-1) == 0
                x = np.stack([np.zeros(y.size), x[region]])
            else:
                y = target[sample].reshape(-1).astype(int)
                kept = np.ones(y.size, bool) if ignore_label is None else y != ignore_label
            x, y = x[:, kept], y[kept]
            if y.size:
                x = x - x.max(0)
                group.append((x - np.log(np.exp(x).sum(0)), y))
        groups.append(group)
    return groups


def mean_over_groups(function):
    """Regions mode is the mean over regions of the loss on each region's two-class problem."""

    def loss(logits, target, *, regions=False, ignore_label=None, batch_dice=False, **parameters):
        groups = problems(logits, target, regions=regions, ignore_label=ignore_label)
        if not groups[0]:
            return 0.0
        return float(
            np.mean([function(group, batch_dice=batch_dice, **parameters) for group in groups])
        )

    return loss


def voxels(group):
    """ln p_t and label of all voxels of the batch."""
    log_p = np.concatenate([lp[y, np.arange(y.size)] for lp, y in group])
    return log_p, np.concatenate([y for _, y in group])


def counts(group, batch_dice):
    """TP, FP, FN of shape (samples or 1, classes)."""
    rows = []
    for log_p, y in group:
        p = np.exp(log_p)
        one_hot = np.eye(p.shape[0])[y].T
        rows.append([(p * one_hot).sum(1), (p * (1 - one_hot)).sum(1), ((1 - p) * one_hot).sum(1)])
    table = np.array(rows).transpose(1, 0, 2)
    return table.sum(1, keepdims=True) if batch_dice else table


def tversky_index(group, batch_dice, alpha, beta, smooth, include_background):
    tp, fp, fn = counts(group, batch_dice)
    index = (tp + smooth) / (tp + alpha * fp + beta * fn + smooth)
    return index if include_background else index[:, 1:]


@mean_over_groups
def cross_entropy(group, *, batch_dice):
    log_p, _ = voxels(group)
    return -log_p.mean()


@mean_over_groups
def focal(group, *, batch_dice, gamma=2, alpha=None):
    log_p, y = voxels(group)
    weight = 1.0
    if isinstance(alpha, (int, float)):
        weight = np.where(y > 0, alpha, 1 - alpha)
    elif alpha is not None:
        weight = np.array(alpha)[y]
    return (weight * (1 - np.exp(log_p)) ** gamma * -log_p).mean()


@mean_over_groups
def symmetric_focal(group, *, batch_dice, delta=0.7, gamma=2):
    log_p, y = voxels(group)
    return (np.where(y > 0, delta, 1 - delta) * (1 - np.exp(log_p)) ** gamma * -log_p).mean()


@mean_over_groups
def asymmetric_focal(group, *, batch_dice, delta=0.7, gamma=2):
    log_p, y = voxels(group)
    foreground = delta * -log_p
    background = (1 - delta) * (1 - np.exp(log_p)) ** gamma * -log_p
    return np.where(y > 0, foreground, background).mean()


@mean_over_groups
def tversky(group, *, batch_dice, alpha=0.3, beta=0.7, smooth=1e-5, include_background=False):
    return 1 - tversky_index(group, batch_dice, alpha, beta, smooth, include_background).mean()


@mean_over_groups
def dice(group, *, batch_dice, smooth=1e-5, include_background=False):
    tp, fp, fn = counts(group, batch_dice)
    score = (2 * tp + smooth) / (2 * tp + fp + fn + smooth)
    return 1 - (score if include_background else score[:, 1:]).mean()


@mean_over_groups
def focal_tversky(
    group, *, batch_dice, alpha=0.3, beta=0.7, gamma=0.75, smooth=1e-5, include_background=False
):
    index = tversky_index(group, batch_dice, alpha, beta, smooth, include_background)
    return ((1 - index) ** gamma).mean()


@mean_over_groups
def symmetric_focal_tversky(
    group, *, batch_dice, delta=0.7, gamma=0.75, smooth=1e-7, include_background=True
):
    index = tversky_index(group, batch_dice, 1 - delta, delta, smooth, include_background)
    return ((1 - index) ** (1 - gamma)).mean()


@mean_over_groups
def asymmetric_focal_tversky(
    group, *, batch_dice, delta=0.7, gamma=0.75, smooth=1e-7, include_background=True
):
    error = 1 - tversky_index(group, batch_dice, 1 - delta, delta, smooth, True)
    background, foreground = error[:, :1], error[:, 1:] ** (1 - gamma)
    return (np.hstack([background, foreground]) if include_background else foreground).mean()


def unified(region_loss, voxel_loss):
    """λ · region-based + (1 − λ) · distribution-based, with the same δ and γ."""

    def loss(logits, target, *, weight=0.5, delta=0.6, gamma=0.5, **others):
        smoothing = {k: others.pop(k) for k in ("smooth", "include_background") if k in others}
        shared = {"delta": delta, "gamma": gamma, **others}
        region = region_loss(logits, target, **smoothing, **shared)
        return weight * region + (1 - weight) * voxel_loss(logits, target, **shared)

    return loss


symmetric_unified_focal = unified(symmetric_focal_tversky, symmetric_focal)
unified_focal = unified(asymmetric_focal_tversky, asymmetric_focal)


@mean_over_groups
def combo(group, *, batch_dice, alpha=0.5, beta=0.5, smooth=1e-5, include_background=True):
    log_p, y = voxels(group)
    tp, fp, fn = counts(group, batch_dice)
    score = (2 * tp + smooth) / (2 * tp + fp + fn + smooth)
    score = score if include_background else score[:, 1:]
    return alpha * (np.where(y > 0, beta, 1 - beta) * -log_p).mean() - (1 - alpha) * score.mean()


def dice_cross_entropy(
    logits, target, *, weight_dice=1, weight_ce=1, smooth=1e-5, include_background=False, **options
):
    overlap = dice(logits, target, smooth=smooth, include_background=include_background, **options)
    return weight_dice * overlap + weight_ce * cross_entropy(logits, target, **options)
