"""The score behind every overlap loss.

Dice, Jaccard and their relatives are one score with other constants. With soft counts TP, FP, FN
the Tversky index is TI = (TP + s) / (TP + α·FP + β·FN + s), and what a loss needs is its complement

    1 − TI = (α·FP + β·FN) / (TP + α·FP + β·FN + s),

written so because the difference would round a small error away.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_unifiedloss.losses.view import Counts


def tversky_complement(
    counts: Counts, *, alpha: float, beta: float, smooth: float, include_background: bool
) -> Tensor:
    """1 − Tversky index of each sample, group and class in use.

    Args:
        counts: Soft counts, (B, G, K).
        alpha: Weight of false positives.
        beta: Weight of false negatives.
        smooth: Added to numerator and denominator of the index.
        include_background: Use class 0 too.

    Returns:
        (B, G, K), or (B, G, K − 1) without background; 0 where there is nothing to find and
        nothing was found.
    """
    errors = alpha * counts.false_positives + beta * counts.false_negatives
    total = counts.true_positives + errors + smooth
    # the root of the smallest float: its reciprocal times a gradient does not overflow
    nothing = total <= torch.finfo(total.dtype).tiny ** 0.5  # not so where it is NaN
    complement = torch.where(nothing, 0, errors / torch.where(nothing, 1, total))
    return complement if include_background else complement[..., 1:]


def power(base: Tensor, exponent: float) -> Tensor:
    """base^exponent for base ≥ 0, with slope 0 instead of ∞ at 0 for exponents below 1.

    There the base's own slope with respect to the logits is 0 as well, and 0 · ∞ would be NaN.
    """
    if exponent == 1:
        return base
    zero = base < torch.finfo(base.dtype).tiny
    return torch.where(zero, 0, torch.where(zero, 1, base).pow(exponent))
