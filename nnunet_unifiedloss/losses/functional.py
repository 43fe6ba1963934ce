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
    """(1 − p_t)^γ, the factor that fades out confident voxels.

    To be multiplied by CE, which is 0 where 1 − p_t is: there the smallest float stands in for 0,
    since the gradient of 0^γ is infinite for γ < 1.
    """
    return error.clamp_min(torch.finfo(error.dtype).tiny).pow(gamma)


def power(base: Tensor, exponent: float) -> Tensor:
    """base^exponent for base ≥ 0 and exponent > 0, with gradient 0 at 0 instead of ∞ below 1.

    The base's own gradient with respect to the logits is 0 there too, and 0 · ∞ would be NaN.
    """
    if exponent == 1:
        return base
    zero = base < torch.finfo(base.dtype).tiny
    return torch.where(zero, 0, torch.where(zero, 1, base).pow(exponent))


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """A tensor of a few constants, filled on the device: copying a list would synchronise."""
    return torch.stack([like.new_full((), value) for value in values])


def safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Numerator / denominator, and 0 where the denominator is 0; both ≥ 0, numerator the smaller.

    "0" ends at the root of the smallest float: below it, the gradient 1/denominator² overflows.
    """
    zero = denominator <= torch.finfo(denominator.dtype).tiny ** 0.5  # False where it is NaN
    return torch.where(zero, 0, numerator / torch.where(zero, 1, denominator))


def shift(values: Tensor, axis: int, by: int) -> Tensor:
    """Move values by some voxels along an axis; 0 comes in from outside of the image."""
    return functional.pad(values, [0, 0] * (values.ndim - 1 - axis) + [by, -by])
