"""Sums and maxima over the processes of distributed training."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, distributed


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
    """A sum over ranks whose gradient is the sum of the ranks' gradients.

    torch has the same function, but PyTorch 2.11 compiles it without a gradient, because it returns
    a tensor that it wrote to in place; a view of that tensor is safe (pytorch/pytorch#180642).
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ANN401 (torch's own type)
        total = values.clone()
        distributed.all_reduce(total)
        return total.view_as(total)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        return sum_over_ranks(gradient)
