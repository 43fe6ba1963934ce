"""The differentiable steps from logits to errors and focal terms, with exact slopes.

Each has a slope that autograd would round to nothing, or make infinite, somewhere on the way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_SATURATED_LOGIT = 1e4  # its sigmoid is exactly 1 and its slope exactly 0, in every dtype


def accumulation_dtype(logits: Tensor) -> torch.dtype:
    """The dtype that a loss computes in: float32, or float64 for float64 logits."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


class SoftmaxSplit(torch.autograd.Function):
    """(logits, label) → (ln p_t, 1 − p_t, p with the true class's channel set to zero).

    Splitting the true class from the others keeps every digit where autograd would subtract nearly
    equal numbers: 1 − p_t is the sum of the others, and so is the slope of ln p_t. The output
    1 − p_t has no gradient of its own, see :class:`Error`. Only one tensor of the logits' size is
    kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch's own type)
        logits: Tensor,
        label: Tensor,
        ignored: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        others = torch.log_softmax(logits, 1, dtype=accumulation_dtype(logits))
        log_p_t = others.gather(1, label)
        others = others.exp_().scatter_(1, label, 0)
        if ignored is not None:
            others = others.masked_fill_(ignored, 0)
        error = others.sum(1, keepdim=True)
        log_p_t = _sharpen(log_p_t, error)
        ctx.mark_non_differentiable(error)
        ctx.set_materialize_grads(False)
        # most tasks have few classes: eight bytes for each label would be a waste
        few = logits.shape[1] <= 256
        ctx.save_for_backward(others, error, log_p_t, label.to(torch.uint8) if few else label)
        ctx.dtype = logits.dtype
        return log_p_t, error, others

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        grad_log_p_t: Tensor | None,
        _: None,
        grad_others: Tensor | None,
    ) -> tuple[Tensor, None, None]:
        others, error, log_p_t, label = ctx.saved_tensors
        slope = torch.zeros_like(error) if grad_log_p_t is None else grad_log_p_t
        if grad_others is None:
            grad = others * -slope
            at_true_class = error * slope
        else:
            # with s = Σ p·grad over the others: p·(grad − slope − s) for them, and
            # (1 − p_t)·slope − p_t·s for the true class
            inner = torch.zeros_like(slope)
            for p, grad_p in zip(others.unbind(1), grad_others.unbind(1), strict=True):
                inner.addcmul_(p[:, None], grad_p[:, None])  # no product of the logits' size
            at_true_class = log_p_t.exp().mul_(inner).neg_().addcmul_(error, slope)
            grad = (grad_others - inner.add_(slope)).mul_(others)
            del inner
        return grad.scatter_(1, label.long(), at_true_class).to(ctx.dtype), None, None


class SigmoidSplit(torch.autograd.Function):
    """(logits, background) → (ln p_t, 1 − p_t) of the problems {background, region}.

    The output 1 − p_t has no gradient of its own, see :class:`Error`.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        logits: Tensor,
        background: Tensor,
        ignored: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        margin = (1 - 2 * background).mul_(logits)  # the logit of the true class
        if ignored is not None:
            margin = margin.masked_fill_(ignored, _SATURATED_LOGIT)
        log_p_t = functional.logsigmoid(margin)
        error = margin.neg_().sigmoid_()
        ctx.mark_non_differentiable(error)
        ctx.save_for_backward(error, background)
        ctx.dtype = logits.dtype
        return log_p_t, error

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        grad_log_p_t: Tensor,
        _: None,
    ) -> tuple[Tensor, None, None]:
        error, background = ctx.saved_tensors
        return (1 - 2 * background).mul_(error).mul_(grad_log_p_t).to(ctx.dtype), None, None


class Error(torch.autograd.Function):
    """1 − p_t as a function of ln p_t, given its value."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        log_p_t: Tensor,
        error: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(log_p_t)
        return error.view_as(error)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, None]:
        (log_p_t,) = ctx.saved_tensors
        return log_p_t.exp().mul_(grad).neg_(), None


class FocalTerm(torch.autograd.Function):
    """(1−p_t)^γ · CE as a function of ln p_t, given 1 − p_t.

    Its slope −(1−p_t)^γ · (1 + γ·p_t·CE/(1−p_t)) is finite everywhere, also where γ < 1 gives the
    factor (1−p_t)^γ an infinite slope, because CE/(1−p_t) tends to 1 as p_t does.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        log_p_t: Tensor,
        error: Tensor,
        gamma: float,
    ) -> Tensor:
        ctx.save_for_backward(log_p_t, error)
        ctx.gamma = gamma
        return error.pow(gamma).mul_(log_p_t).neg_()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, None, None]:
        log_p_t, error = ctx.saved_tensors
        slope = log_p_t / error.clamp_min(torch.finfo(error.dtype).tiny)
        slope = slope.mul_(1 - error).mul_(ctx.gamma).sub_(1)
        return slope.mul_(error.pow(ctx.gamma)).mul_(grad), None, None


def _sharpen(log_p_t: Tensor, error: Tensor) -> Tensor:
    """Take ln p_t from the series of ln(1 − error) where the error 1 − p_t is small.

    There the difference of logits has lost its digits. At the threshold ε^¼ the terms left out
    weigh as much as what rounding takes from the difference.
    """
    series = (error / 3).add_(0.5).mul_(error).add_(1).mul_(error).neg_()
    return torch.where(error < torch.finfo(error.dtype).eps ** 0.25, series, log_p_t)
