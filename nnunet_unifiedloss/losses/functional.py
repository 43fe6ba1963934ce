"""Equations that several losses share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_unifiedloss.losses.probabilities import Counts


def tversky_loss(counts: Counts, *, alpha: float, beta: float, smooth: float) -> Tensor:
    r"""1 − TI of each sample, group and class, (B, G, K).

    .. math:: 1 - \mathrm{TI} = \frac{\alpha FP + \beta FN}{TP + \alpha FP + \beta FN + s}

    Dice is α = β = ½ with s/2, Jaccard α = β = 1. The numerator is written out, because 1 − TI
    rounds a small loss away. Where nothing is there and nothing was found, the loss is 0.

    Args:
        counts: Soft counts, (B, G, K).
        alpha: Weight of false positives.
        beta: Weight of false negatives.
        smooth: s ≥ 0.
    """
    true_positives, false_positives, false_negatives = counts
    errors = alpha * false_positives + beta * false_negatives
    return safe_divide(errors, true_positives + errors + smooth)


def focal_weight(error: Tensor, gamma: float) -> Tensor:
    """(1 − p_t)^γ, the factor that down-weights confident voxels.

    It multiplies CE, which is 0 where 1 − p_t is. A tiny number stands in for 0 there, since the
    gradient of 0^γ is infinite for γ < 1.
    """
    return error.clamp_min(zero(error)).pow(gamma)


def power(base: Tensor, exponent: float) -> Tensor:
    """base^exponent for base ≥ 0 and exponent > 0, with gradient 0 at 0 instead of ∞ below 1.

    The base's own gradient with respect to the logits is 0 there too, and 0 · ∞ would be NaN.
    """
    if exponent == 1:
        return base
    is_zero = base < zero(base)
    return torch.where(is_zero, 0, torch.where(is_zero, 1, base).pow(exponent))


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """A tensor of a few constants, filled on the device: copying a list would synchronise."""
    return torch.stack([like.new_full((), value) for value in values])


def safe_divide(a: Tensor, b: Tensor) -> Tensor:
    """Quotient of a ≥ 0 and b ≥ a, and 0 where b is 0."""
    is_zero = b <= zero(b)  # False where it is NaN
    return torch.where(is_zero, 0, a / torch.where(is_zero, 1, b))


def zero(like: Tensor) -> float:
    """The largest number that counts as 0: below it, 1/x² and x^(γ − 2) overflow."""
    return float(torch.finfo(like.dtype).tiny ** 0.5)


def shift(values: Tensor, axis: int, by: int) -> Tensor:
    """Move values by some voxels along an axis; 0 comes in from outside of the image."""
    return functional.pad(values, [0, 0] * (values.ndim - 1 - axis) + [by, -by])
