"""The losses that look at where voxels are, in plain NumPy and SciPy; see formulas.py."""

from __future__ import annotations

import functools
import itertools

import numpy as np
from scipy import ndimage

from tests.helpers import formulas


def images(logits, target, *, regions, ignore_label):
    """For each group a list of samples: (log p (K, *S), label (*S), counting (*S))."""
    batch, channels = logits.shape[:2]
    groups = []
    for region in range(channels if regions else 1):
        group = []
        for sample in range(batch):
            x = logits[sample].astype(np.float64)
            if regions:
                label = target[sample, region].astype(int)
                counting = np.ones(label.shape, bool)
                if ignore_label is not None:
                    counting = target[sample, channels] == 0
                x = np.stack([np.zeros(label.shape), x[region]])
            else:
                label = target[sample, 0].astype(int)
                counting = label != (-1 if ignore_label is None else ignore_label)
            x = x - x.max(0)
            group.append((x - np.log(np.exp(x).sum(0)), np.where(counting, label, 0), counting))
        groups.append(group)
    return groups


def mean_over_groups(function):
    @functools.wraps(function)
    def loss(logits, target, *, regions=False, ignore_label=None, batch_dice=False, **parameters):
        groups = images(logits, target, regions=regions, ignore_label=ignore_label)
        return float(np.mean([function(group, **parameters) for group in groups]))

    return loss


def distance(to, spacing):
    """Distance of every voxel to the nearest one of a mask, 0 if there is none."""
    if not to.any():
        return np.zeros(to.shape)
    return ndimage.distance_transform_edt(~to, sampling=spacing)


def cross_entropy(log_p, label):
    return -np.take_along_axis(log_p, label[None], 0)[0]


def voxel_mean(maps, group):
    counted = sum(counting.sum() for _, _, counting in group)
    pairs = zip(maps, group, strict=True)
    return sum((values * counting).sum() for values, (_, _, counting) in pairs) / max(counted, 1)


@mean_over_groups
def distance_penalized(group, *, spacing=None):
    maps = []
    for log_p, label, counting in group:
        factor = np.ones(label.shape)
        for c in range(len(log_p)):
            d = distance((label != c) & counting, spacing)
            mine = (label == c) & (d > 0)
            factor[mine] += 1 / d[mine]
        maps.append(factor * cross_entropy(log_p, label))
    return voxel_mean(maps, group)


@mean_over_groups
def boundary(group, *, include_background=False, spacing=None):
    maps = []
    for log_p, label, counting in group:
        total = np.zeros(label.shape)
        classes = range(0 if include_background else 1, len(log_p))
        for c in classes:
            mask = (label == c) & counting
            inside = distance(~mask & counting, spacing) * mask
            outside = distance(mask, spacing) * ~mask
            total += np.exp(log_p[c]) * np.where(inside > 0, -(inside - 1), outside)
        maps.append(total / len(classes))
    return voxel_mean(maps, group)


def both_sides(mask, counting, spacing):
    complement = ~mask & counting
    return distance(mask, spacing) * complement + distance(complement, spacing) * mask


@mean_over_groups
def hausdorff_dt(group, *, alpha=2, include_background=False, spacing=None):
    maps = []
    for log_p, label, counting in group:
        classes = range(0 if include_background else 1, len(log_p))
        total = np.zeros(label.shape)
        for c in classes:
            p, y = np.exp(log_p[c]), (label == c) & counting
            weight = both_sides(y, counting, spacing) ** alpha
            weight = weight + both_sides((p > 0.5) & counting, counting, spacing) ** alpha
            total += (p - y) ** 2 * weight
        maps.append(total / len(classes))
    return voxel_mean(maps, group)


@mean_over_groups
def hausdorff_er(group, *, alpha=2, erosions=10, include_background=False):
    maps = []
    for log_p, label, counting in group:
        cross = ndimage.generate_binary_structure(label.ndim, 1)
        kernel = cross / cross.sum()
        classes = range(0 if include_background else 1, len(log_p))
        total = np.zeros(label.shape)
        for c in classes:
            left = (np.exp(log_p[c]) - (label == c)) ** 2 * counting
            for k in range(1, erosions + 1):
                left = ndimage.convolve(left, kernel, mode="constant") - 0.5
                left = np.maximum(left, 0) * counting
                left = left / left.max() if left.max() > 0 else left
                total += k**alpha * left
        maps.append(total / len(classes))
    return voxel_mean(maps, group)


def curve(label, counting):
    """Foreground voxels with a face neighbour of another label, found voxel by voxel."""
    found = np.zeros(label.shape, bool)
    for index in itertools.product(*map(range, label.shape)):
        if label[index] == 0 or not counting[index]:
            continue
        for axis, step in itertools.product(range(label.ndim), (-1, 1)):
            other = list(index)
            other[axis] += step
            if 0 <= other[axis] < label.shape[axis]:
                found[index] |= counting[tuple(other)] and label[tuple(other)] != label[index]
    return found


@mean_over_groups
def shape_aware(group, *, spacing=None):
    maps = []
    for log_p, label, counting in group:
        predicted = log_p.argmax(0)
        reference = curve(label, counting)
        outline = curve(predicted, counting)
        mean = distance(reference, spacing)[outline].mean() if outline.any() else 0
        wrong = predicted != label
        maps.append((1 + mean * wrong) * cross_entropy(log_p, label))
    return voxel_mean(maps, group)


def standardised(values, counting, window, c):
    """(v − μ + c)/(σ + c) with weighted statistics of each window, voxel by voxel."""
    radius = window // 2
    result = np.zeros(values.shape)
    for index in itertools.product(*map(range, values.shape)):
        weights, inside = [], []
        for offset in itertools.product(range(-radius, radius + 1), repeat=values.ndim):
            other = tuple(np.add(index, offset))
            exists = all(0 <= o < s for o, s in zip(other, values.shape, strict=True))
            if exists and counting[other]:
                weights.append(np.exp(-np.square(offset).sum() / (2 * 1.5**2)))
                inside.append(values[other])
        if weights:
            mean = np.average(inside, weights=weights)
            deviation = np.sqrt(np.average((inside - mean) ** 2, weights=weights))
            result[index] = (values[index] - mean + c) / (deviation + c)
    return result


@mean_over_groups
def structural_similarity(group, *, window=3, c=0.01, beta=0.1, weight=0.5):
    differences = []
    for log_p, label, counting in group:
        e = [
            np.abs(
                standardised((label == k).astype(float), counting, window, c)
                - standardised(np.exp(log_p[k]), counting, window, c)
            )
            for k in range(len(log_p))
        ]
        differences.append(np.array(e) * counting)
    largest = max(e.max() for e in differences)
    chosen, structure = 0, 0.0
    for e, (log_p, label, counting) in zip(differences, group, strict=True):
        f = (e > beta * largest) & counting
        chosen += f.sum()
        structure += (e * f * cross_entropy(log_p, label)).sum()
    plain = voxel_mean([cross_entropy(log_p, label) for log_p, label, _ in group], group)
    return weight * plain + (1 - weight) * structure / max(chosen, 1)


dice_boundary = formulas.dice_plus(boundary, ("alpha", "spacing"), weight="alpha")
dice_hausdorff = formulas.dice_plus(hausdorff_dt, ("alpha", "spacing"))
