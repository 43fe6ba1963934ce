"""The differentiable steps from logits to errors, sums and focal terms, with exact slopes.

Autograd would round their slopes to nothing, or make them infinite, somewhere on the way, or keep
copies of whole maps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from nnunet_unifiedloss.losses.devices import at_hand
from nnunet_unifiedloss.losses.elementary import exp, log1p

Slopes = TypeVar("Slopes")

_SATURATED_LOGIT = 1e4  # its sigmoid is exactly 1 and its slope exactly 0, in every dtype


def accumulation_dtype(logits: Tensor) -> torch.dtype:
    """The dtype that a loss computes in: float32, or float64 for float64 logits."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def differentiable_once(backward: Callable[..., Slopes]) -> Callable[..., Slopes]:
    """Decorate a backward pass that has no derivative of its own.

    torch's ``once_differentiable`` refuses a second derivative where it reaches what the pass was
    given; where it goes by way of what the pass has saved, it would be left out without a word.
    """

    @functools.wraps(backward)
    def refusing(*arguments: Any) -> Slopes:  # noqa: ANN401
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            raise RuntimeError("the losses have no second derivatives: create_graph must be False")
        return backward(*arguments)

    return refusing


def of_maps(numbers: Tensor, maps: Tensor) -> Tensor:
    """Numbers for the first axes of maps, shaped so that they apply to all that follows."""
    return numbers.reshape(*numbers.shape, *(1 for _ in maps.shape[numbers.ndim :]))


def as_output(values: Tensor) -> Tensor:
    """What a function returns of a tensor that it wrote to in place.

    If PyTorch 2.11 compiles a function that returns the tensor itself, its gradient is zero
    (pytorch/pytorch#180642).
    """
    return values.view_as(values)


class SigmoidSplit(torch.autograd.Function):
    """(logits, foreground) → (CE, 1 − p_t) of the problems {background, region}.

    The output 1 − p_t has no gradient of its own, see :class:`Error`.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        logits: Tensor,
        foreground: Tensor,
        ignored: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        margin = (2 * foreground).sub_(1).mul_(logits)  # the logit of the true class
        if ignored is not None:
            margin = margin.masked_fill_(ignored, _SATURATED_LOGIT)
        cross_entropy = log1p(exp(margin.abs().neg_()))
        margin = margin.neg_()
        cross_entropy += margin.relu()
        error = margin.sigmoid_()
        ctx.mark_non_differentiable(error)
        ctx.save_for_backward(error, foreground)
        ctx.dtype = logits.dtype
        return as_output(cross_entropy), error

    @staticmethod
    @differentiable_once
    def backward(
        ctx: Any,  # noqa: ANN401
        slope: Tensor | None,
        _error: None,
    ) -> tuple[Tensor | None, None, None]:
        error, foreground = ctx.saved_tensors
        if slope is None:
            return None, None, None
        return (1 - 2 * foreground).mul_(error).mul_(slope).to(ctx.dtype), None, None


class RegionSums(torch.autograd.Function):
    """Sums over space of values (B, R, *S) in the background and in the foreground, (B, R, 2)."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        values: Tensor,
        foreground: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(foreground)
        in_foreground = values * foreground
        foreground_sum = in_foreground.flatten(2).sum(2)
        in_background = in_foreground.neg_().add_(values)
        return torch.stack([in_background.flatten(2).sum(2), foreground_sum], 2)

    @staticmethod
    @differentiable_once
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, None]:
        (foreground,) = ctx.saved_tensors
        background_grad, foreground_grad = (of_maps(g, foreground) for g in grad.unbind(2))
        return (foreground * (foreground_grad - background_grad)).add_(background_grad), None


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
    @differentiable_once
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, None, None]:
        (p_t,) = ctx.saved_tensors
        return p_t * grad, None, None


class WithTruth(torch.autograd.Function):
    """A map of every class: that of the others, with a function of CE in the true class's channel.

    The function is 1 − p_t, its slope p_t, or p_t, its slope −p_t.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        others: Tensor,
        _cross_entropy: Tensor,
        of_truth: Tensor,
        slope: Tensor,
        label: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(slope, label)
        return others.scatter(1, label, of_truth)

    @staticmethod
    @differentiable_once
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, Tensor, None, None, None]:
        slope, label = ctx.saved_tensors
        # the true class's channel of the others is a constant: what it gets here is left out there
        return grad, grad.gather(1, label).mul_(slope), None, None, None


class SquareSums(torch.autograd.Function):
    """Σ weights · values² over all axes but the first two, with one product to go back."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        values: Tensor,
        weights: Tensor | None = None,
    ) -> Tensor:
        ctx.save_for_backward(values, weights)
        sums = []
        for index, channel in enumerate(values.unbind(1)):  # one square at a time takes memory
            square = channel.square()
            if weights is not None:
                square.mul_(weights[:, index])
            sums.append(square.flatten(1).sum(1))
        return torch.stack(sums, 1)

    @staticmethod
    @differentiable_once
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, None]:
        values, weights = ctx.saved_tensors
        slope = values * (2 * of_maps(grad, values))
        return slope if weights is None else slope.mul_(weights), None


def weighted_sum(weigh: Callable[..., tuple[Tensor, ...]], *values: Tensor) -> Tensor:
    """Σ weights · values, where the weights are constants that a function gives for the values."""
    if torch.compiler.is_compiling():
        pairs = zip(values, weigh(*values), strict=True)
        return torch.stack([(each * weights.detach()).sum() for each, weights in pairs]).sum()
    total: Tensor = _WeightedSum.apply(weigh, *values)
    return total


def _sum_of_products(values: Tensor, weights: Tensor) -> Tensor:
    """On the CPU row by row, whose product its cache holds; torch.dot adds less exactly."""
    pairs = [(values, weights)]
    if at_hand(values):
        pairs = list(zip(values.flatten(0, -2), weights.flatten(0, -2), strict=True))
    return torch.stack([(row * weight).sum() for row, weight in pairs]).sum()


class _WeightedSum(torch.autograd.Function):
    """On the way back the weights become the slopes: as new tensors these would take long to get.

    If the way is taken again, the weights are computed again, of the values that were saved.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        weigh: Callable[..., tuple[Tensor, ...]],
        *values: Tensor,
    ) -> Tensor:
        ctx.weigh, ctx.weights = weigh, weigh(*values)
        ctx.save_for_backward(*values)
        return torch.stack(
            [_sum_of_products(*pair) for pair in zip(values, ctx.weights, strict=True)]
        ).sum()

    @staticmethod
    @differentiable_once
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor | None, ...]:
        weights = ctx.weights or ctx.weigh(*ctx.saved_tensors)
        ctx.weights = None
        return None, *(each.mul_(grad) for each in weights)


class FocalTerm(torch.autograd.Function):
    """w_t · (1−p_t)^γ · CE as a function of CE, given 1 − p_t.

    Its slope w_t · (1−p_t)^γ · (1 + γ·p_t·CE/(1−p_t)) is finite everywhere, also where γ < 1 gives
    the factor (1−p_t)^γ an infinite slope, because CE/(1−p_t) tends to 1 as p_t does. The weights
    are those of the background and of the foreground; without the map of the foreground they are 1.
    If asymmetric, the foreground's loss is w_t · CE.
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
        factor = error.pow(gamma)
        if foreground is not None:
            background_weight, foreground_weight = weights
            if asymmetric:  # the map holds 0 and 1 only, where lerp loses no digit
                end = factor.new_full((), foreground_weight).expand_as(factor)
                factor = factor.mul_(background_weight).lerp_(end, foreground)
            else:
                weight = foreground * (foreground_weight - background_weight)
                factor *= weight.add_(background_weight)
        ctx.gamma = gamma
        plain = foreground if asymmetric else None
        ctx.save_for_backward(cross_entropy, error, factor, plain)
        return factor * cross_entropy

    @staticmethod
    @differentiable_once
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, None, None, None, None, None]:
        cross_entropy, error, factor, plain = ctx.saved_tensors
        slope = error.clamp_min(torch.finfo(error.dtype).tiny).reciprocal_().mul_(cross_entropy)
        slope = slope.addcmul_(slope, error, value=-1).mul_(ctx.gamma)
        if plain is not None:
            slope.addcmul_(slope, plain, value=-1)
        return slope.add_(1).mul_(factor).mul_(grad), None, None, None, None, None


def probability(cross_entropy: Tensor) -> Tensor:
    """p_t = exp(−CE), not rounded to 0 before floats end; without gradient, see :class:`Error`."""
    return exp(-cross_entropy.detach())
