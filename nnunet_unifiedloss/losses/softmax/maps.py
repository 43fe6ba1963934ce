"""The softmax's steps on whole maps, for every device, dtype and compiler."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_unifiedloss.losses.autograd import accumulation_dtype, probability
from nnunet_unifiedloss.losses.elementary import exp, index_dtype, sharpen, sum_channels


def split(
    logits: Tensor, label: Tensor, ignored: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Take the true class out of a softmax.

    Args:
        logits: (B, C, *S).
        label: True class, (B, 1, *S).
        ignored: True where a voxel does not count, (B, 1, *S), or None; its label must be valid.

    Returns:
        CE, 1 − p_t and p_t of each voxel, (B, 1, *S), where ignored those of a perfect prediction;
        p of the others, 0 for the true class and where ignored, (B, C, *S); what :func:`slopes`
        has to know of the labels.

    Raises:
        RuntimeError: A label is out of bounds.
    """
    log_p = torch.log_softmax(logits, 1, dtype=accumulation_dtype(logits))
    cross_entropy = log_p.gather(1, label).neg_()
    others = exp(log_p).scatter_(1, label, torch.zeros_like(cross_entropy))
    if ignored is not None:
        others = others.masked_fill_(ignored, 0)
    truth = label.to(index_dtype(others.shape[1]))
    error = sum_channels(others)
    cross_entropy = sharpen(cross_entropy, error)
    if ignored is not None:
        cross_entropy = torch.where(ignored, error, cross_entropy)  # 0; not even NaN counts
    return cross_entropy, error, probability(cross_entropy), others, truth


def slopes(
    others: Tensor,
    truth: Tensor,
    error: Tensor,
    p_t: Tensor,
    slope: Tensor,
    grad_others: Tensor | None,
) -> Tensor:
    """The slopes of the logits, (B, C, *S), given those of CE and of the others' p.

    With s = Σ p·grad over the others: p·(grad + slope − s) for them, and −(1 − p_t)·slope − p_t·s
    for the true class.
    """
    at_true_class = error * slope
    if grad_others is None:
        grad = others * slope
    else:
        inner = sum_channels(others, grad_others)
        at_true_class.addcmul_(p_t, inner)
        grad = (grad_others - inner.sub_(slope)).mul_(others)
    return grad.scatter_(1, truth.long(), at_true_class.neg_())
