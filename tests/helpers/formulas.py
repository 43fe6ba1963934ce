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


@mean_over_groups
def weighted_cross_entropy(group, *, batch_dice, class_weights=None):
    log_p, y = voxels(group)
    weight = np.ones(y.size) if class_weights is None else np.array(class_weights)[y]
    return (weight * -log_p).sum() / weight.sum()


@mean_over_groups
def balanced_cross_entropy(group, *, batch_dice):
    weighted = [
        (1 - np.bincount(y, minlength=len(lp)) / y.size)[y] * -lp[y, np.arange(y.size)]
        for lp, y in group
    ]
    return np.concatenate(weighted).mean()


@mean_over_groups
def top_k(group, *, batch_dice, k=10):
    log_p, _ = voxels(group)
    largest = np.sort(-log_p)[::-1]
    return largest[: max(1, int(largest.size * k / 100))].mean()


@mean_over_groups
def jaccard(group, *, batch_dice, smooth=1e-5, include_background=False):
    tp, fp, fn = counts(group, batch_dice)
    score = (tp + smooth) / (tp + fp + fn + smooth)
    return 1 - (score if include_background else score[:, 1:]).mean()


@mean_over_groups
def asymmetric_similarity(group, *, batch_dice, beta=1.5, smooth=1e-5, include_background=False):
    tp, fp, fn = counts(group, batch_dice)
    # the F_β score as everybody knows it, (1 + β²)TP / ((1 + β²)TP + FP + β² FN), smoothed
    share = 1 + beta**2
    score = (share * (tp + smooth)) / (share * (tp + smooth) + fp + beta**2 * fn)
    return 1 - (score if include_background else score[:, 1:]).mean()


@mean_over_groups
def log_cosh_dice(group, *, batch_dice, smooth=1e-5, include_background=False):
    tp, fp, fn = counts(group, batch_dice)
    score = (2 * tp + smooth) / (2 * tp + fp + fn + smooth)
    return np.log(np.cosh(1 - (score if include_background else score[:, 1:]).mean()))


def volumes(group, batch_dice):
    """Number of voxels of each class, (samples or 1, classes)."""
    table = np.array([np.bincount(y, minlength=len(lp)) for lp, y in group])
    return table.sum(0, keepdims=True) if batch_dice else table


def generalized_dice_of_group(group, batch_dice, smooth, include_background):
    first = 0 if include_background else 1
    losses = []
    for tp, fp, fn, volume in zip(
        *counts(group, batch_dice), volumes(group, batch_dice), strict=True
    ):
        volume = volume[first:].astype(float)
        weights = np.zeros(volume.size)
        weights[volume > 0] = volume[volume > 0] ** -2
        weights[volume == 0] = weights.max()
        weights = weights / weights.max() if weights.any() else np.ones(volume.size)
        overlap = 2 * (weights * tp[first:]).sum() + smooth
        total = (weights * (2 * tp + fp + fn)[first:]).sum() + smooth
        losses.append(1 - overlap / total if total else 0.0)
    return np.mean(losses)


@mean_over_groups
def generalized_dice(group, *, batch_dice, smooth=1e-5, include_background=True):
    return generalized_dice_of_group(group, batch_dice, smooth, include_background)


@mean_over_groups
def penalty_generalized_dice(group, *, batch_dice, k=2.5, smooth=1e-5, include_background=True):
    loss = generalized_dice_of_group(group, batch_dice, smooth, include_background)
    return loss / (1 + k * (1 - loss))


@mean_over_groups
def sensitivity_specificity(
    group, *, batch_dice, weight=0.05, smooth=1e-5, include_background=False
):
    missed, claimed = [], []
    for log_p, y in group:
        squares = (np.exp(log_p) - np.eye(len(log_p))[y].T) ** 2
        one_hot = np.eye(len(log_p))[y].T
        missed.append((squares * one_hot).sum(1))
        claimed.append((squares * (1 - one_hot)).sum(1))
    missed, claimed, inside = np.array(missed), np.array(claimed), volumes(group, False)
    if batch_dice:
        missed, claimed, inside = (a.sum(0, keepdims=True) for a in (missed, claimed, inside))
    outside = inside.sum(1, keepdims=True) - inside
    loss = weight * missed / (inside + smooth) + (1 - weight) * claimed / (outside + smooth)
    return (loss if include_background else loss[:, 1:]).mean()


@mean_over_groups
def lovasz(group, *, batch_dice):
    """Sorted errors times the growth of the Jaccard loss, set by set."""
    p = np.exp(np.concatenate([lp for lp, _ in group], 1))
    y = np.concatenate([y for _, y in group])
    losses = []
    for c in np.unique(y):
        mask = y == c
        errors = np.abs(mask - p[c])
        order = np.argsort(-errors, kind="stable")
        previous, total = 0.0, 0.0
        wrong_inside = wrong_outside = 0
        for voxel in order:
            wrong_inside += mask[voxel]
            wrong_outside += not mask[voxel]
            loss = 1 - (mask.sum() - wrong_inside) / (mask.sum() + wrong_outside)
            total += errors[voxel] * (loss - previous)
            previous = loss
        losses.append(total)
    return np.mean(losses)


@mean_over_groups
def exponential_logarithmic(
    group,
    *,
    batch_dice,
    weight_dice=0.8,
    weight_ce=0.2,
    gamma_dice=0.3,
    gamma_ce=0.3,
    smooth=1e-5,
    include_background=True,
):
    tp, fp, fn = counts(group, batch_dice)
    score = (2 * tp + smooth) / (2 * tp + fp + fn + smooth)
    score = score if include_background else score[:, 1:]
    log_p, y = voxels(group)
    frequency = np.bincount(y) / y.size
    weight = frequency[y] ** -0.5
    return (
        weight_dice * ((-np.log(score)) ** gamma_dice).mean()
        + weight_ce * (weight * (-log_p) ** gamma_ce).mean()
    )


def dice_plus(other, other_parameters, weight=1.0):
    """Dice loss plus another; the other one takes the parameters named."""

    def loss(logits, target, *, smooth=1e-5, include_background=False, **arguments):
        own = {key: arguments.pop(key) for key in other_parameters if key in arguments}
        overlap = dice(
            logits, target, smooth=smooth, include_background=include_background, **arguments
        )
        factor = own.pop(weight, 0.01) if isinstance(weight, str) else weight
        return overlap + factor * other(logits, target, **own, **arguments)

    return loss


dice_focal = dice_plus(focal, ("gamma", "alpha"))
dice_top_k = dice_plus(top_k, ("k",))
