"""The differentiable steps from logits to errors and focal terms, with exact slopes.

Each has a slope that autograd would round to nothing, or make infinite, somewhere on the way.
"""

from __future__ import annotations

import math
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
    """(logits, label) → (CE, 1 − p_t, p_t, p with the true class's channel set to zero).

    Splitting the true class from the others keeps every digit where autograd would subtract nearly
    equal numbers: 1 − p_t is the sum of the others, and so is the slope of CE. The outputs 1 − p_t
    and p_t have no gradient of their own, see :class:`Error`. Only one tensor of the logits' size
    is kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch's own type)
        logits: Tensor,
        label: Tensor,
        ignored: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        others = torch.log_softmax(logits, 1, dtype=accumulation_dtype(logits))
        cross_entropy = others.gather(1, label).neg_()
        others = _exp(others).scatter_(1, label, torch.zeros_like(cross_entropy))
        if ignored is not None:
            others = others.masked_fill_(ignored, 0)
        error = _sum_channels(others)
        cross_entropy = _sharpen(cross_entropy, error)
        p_t = _exp(-cross_entropy)
        ctx.mark_non_differentiable(error, p_t)
        ctx.set_materialize_grads(False)
        # most tasks have few classes: eight bytes for each label would be a waste
        few = logits.shape[1] <= 256
        ctx.save_for_backward(others, error, p_t, label.to(torch.uint8) if few else label)
        ctx.dtype = logits.dtype
        return cross_entropy, error, p_t, others

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        slope: Tensor | None,
        _error: None,
        _p_t: None,
        grad_others: Tensor | None,
    ) -> tuple[Tensor, None, None]:
        others, error, p_t, label = ctx.saved_tensors
        slope = torch.zeros_like(error) if slope is None else slope
        at_true_class = error * slope
        if grad_others is None:
            grad = others * slope
        else:
            # with s = Σ p·grad over the others: p·(grad + slope − s) for them, and
            # −(1 − p_t)·slope − p_t·s for the true class
            inner = _sum_channels(others, grad_others)
            at_true_class.addcmul_(p_t, inner)
            grad = (grad_others - inner.sub_(slope)).mul_(others)
            del inner
        return grad.scatter_(1, label.long(), at_true_class.neg_()).to(ctx.dtype), None, None


class SigmoidSplit(torch.autograd.Function):
    """(logits, foreground) → (CE, 1 − p_t, p_t) of the problems {background, region}.

    The outputs 1 − p_t and p_t have no gradient of their own, see :class:`Error`.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        logits: Tensor,
        foreground: Tensor,
        ignored: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        margin = (2 * foreground).sub_(1).mul_(logits)  # the logit of the true class
        if ignored is not None:
            margin = margin.masked_fill_(ignored, _SATURATED_LOGIT)
        p_t = margin.sigmoid()
        cross_entropy = functional.logsigmoid(margin).neg_()
        error = margin.neg_().sigmoid_()
        ctx.mark_non_differentiable(error, p_t)
        ctx.save_for_backward(error, foreground)
        ctx.dtype = logits.dtype
        return cross_entropy, error, p_t

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        slope: Tensor,
        _error: None,
        _p_t: None,
    ) -> tuple[Tensor, None, None]:
        error, foreground = ctx.saved_tensors
        return (1 - 2 * foreground).mul_(error).mul_(slope).to(ctx.dtype), None, None


class Error(torch.autograd.Function):
    """1 − p_t as a function of CE, given its value and p_t, its slope."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        _cross_entropy: Tensor,
        error: Tensor,
        p_t: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(p_t)
        return error.view_as(error)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, None, None]:
        (p_t,) = ctx.saved_tensors
        return p_t * grad, None, None


class FocalTerm(torch.autograd.Function):
    """w_t · (1−p_t)^γ · CE as a function of CE, given 1 − p_t; see :func:`_weigh` for the weights.

    Its slope w_t · (1−p_t)^γ · (1 + γ·p_t·CE/(1−p_t)) is finite everywhere, also where γ < 1 gives
    the factor (1−p_t)^γ an infinite slope, because CE/(1−p_t) tends to 1 as p_t does.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        cross_entropy: Tensor,
        error: Tensor,
        foreground: Tensor | None,
        gamma: float,
        weights: tuple[float, float],
        asymmetric: bool,
    ) -> Tensor:
        focus = error.pow(gamma)
        ctx.save_for_backward(cross_entropy, error, focus, foreground)
        ctx.gamma, ctx.weights, ctx.asymmetric = gamma, weights, asymmetric
        return _weigh(focus * cross_entropy, cross_entropy, foreground, weights, asymmetric)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, None, None, None, None, None]:
        cross_entropy, error, focus, foreground = ctx.saved_tensors
        slope = error.clamp_min(torch.finfo(error.dtype).tiny).reciprocal_().mul_(cross_entropy)
        slope = slope.addcmul_(slope, error, value=-1).mul_(ctx.gamma).add_(1).mul_(focus)
        one = slope.new_ones(()).expand_as(slope)
        slope = _weigh(slope, one, foreground, ctx.weights, ctx.asymmetric)
        return slope.mul_(grad), None, None, None, None, None


def _weigh(
    focused: Tensor,
    plain: Tensor,
    foreground: Tensor | None,
    weights: tuple[float, float],
    asymmetric: bool,
) -> Tensor:
    """In place: weight · focused; if asymmetric weight · plain in the foreground.

    The weights are those of the background and of the foreground; without the map of the
    foreground they are 1.
    """
    if foreground is None:
        return focused
    if asymmetric:  # the map holds 0 and 1 only, where lerp loses no digit
        focused = focused.lerp_(plain, foreground)
    background_weight, foreground_weight = weights
    return focused.mul_(
        (foreground * (foreground_weight - background_weight)).add_(background_weight)
    )


def _exp(exponents: Tensor) -> Tensor:
    """In place: e^x as 2^(x · log₂ e), on the CPU more than twice as fast as torch's own."""
    return exponents.mul_(1 / math.log(2)).exp2_()


def _sum_channels(maps: Tensor, weights: Tensor | None = None) -> Tensor:
    """Σ_c weights_c · maps_c, (B, 1, *S): channel by channel, without a product of their size."""
    first, *others = maps.split(1, dim=1)
    if weights is None:
        total = first.clone()
        for channel in others:
            total += channel
        return total
    first_weight, *other_weights = weights.split(1, dim=1)
    total = first * first_weight
    for channel, weight in zip(others, other_weights, strict=True):
        total.addcmul_(channel, weight)
    return total


def _sharpen(cross_entropy: Tensor, error: Tensor) -> Tensor:
    """Give CE = −ln(1 − error) back the digits that a difference of logits loses at small errors.

    The truth lies between e + e²/2 and (e + e²/2)/(1 − e²), which there are nearly one. Clamping
    is vectorised on every device, unlike a choice voxel by voxel.
    """
    lower = torch.addcmul(error, error, error, value=0.5)
    remainder = (error * error).neg_().add_(1).clamp_min_(torch.finfo(error.dtype).tiny)
    return cross_entropy.clamp_(lower, remainder.reciprocal_().mul_(lower))
