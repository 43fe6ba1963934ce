"""Sums over the processes of distributed training, with their gradient."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, distributed

from nnunet_unifiedloss.losses.autograd import as_output, differentiable_once


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum a tensor over all ranks, on every rank.

    The gradient is summed over the ranks as well. DistributedDataParallel then averages the
    gradients of the parameters, so N ranks give the gradient of one rank with the whole batch.

    Raises:
        ValueError: There is no process group.
    """
    _check_process_group()
    return cast(Tensor, _SumOverRanks.apply(values))


def maximum_over_ranks(values: Tensor) -> Tensor:
    """Largest value of each element over all ranks, on every rank; without gradient.

    Raises:
        ValueError: There is no process group.
    """
    _check_process_group()
    maximum = values.detach().clone()
    distributed.all_reduce(maximum, op=distributed.ReduceOp.MAX)
    return maximum


def _check_process_group() -> None:
    if not (distributed.is_available() and distributed.is_initialized()):
        raise ValueError(
            "ddp=True: torch.distributed has no process group; call "
            "torch.distributed.init_process_group() first or pass ddp=False"
        )


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ANN401 (torch's own type)
        total = values.clone()
        distributed.all_reduce(total)
        return as_output(total)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ANN401
        total = grad.clone()
        distributed.all_reduce(total)
        return total
