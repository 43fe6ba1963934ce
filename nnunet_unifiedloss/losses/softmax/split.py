"""The softmax, with the true class apart from the others."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from nnunet_unifiedloss.losses.autograd import as_output, differentiable_once
from nnunet_unifiedloss.losses.devices import has_loops
from nnunet_unifiedloss.losses.softmax import maps


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
        # torch's operators share maps out among its threads, where there are several
        ctx.loops = has_loops(logits) and torch.get_num_threads() == 1
        steps = _steps(ctx.loops)
        cross_entropy, error, p_t, others, truth = steps.split(logits, label, ignored)
        ctx.mark_non_differentiable(error, p_t)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(others, error, p_t, truth)
        ctx.dtype = logits.dtype
        return as_output(cross_entropy), error, p_t, as_output(others)

    @staticmethod
    @differentiable_once
    def backward(
        ctx: Any,  # noqa: ANN401
        slope: Tensor | None,
        _error: None,
        _p_t: None,
        grad_others: Tensor | None,
    ) -> tuple[Tensor, None, None]:
        others, error, p_t, truth = ctx.saved_tensors
        slope = torch.zeros_like(error) if slope is None else slope
        grad = _steps(ctx.loops).slopes(others, truth, error, p_t, slope, grad_others)
        return grad.to(ctx.dtype), None, None


def _steps(in_loops: bool) -> ModuleType:
    if not in_loops:
        return maps
    from nnunet_unifiedloss.losses.softmax import loops  # not before it is needed: Numba

    return loops
