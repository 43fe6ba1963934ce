"""What can be done where tensors are."""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor


def at_hand(values: Tensor) -> bool:
    """Whether the numbers of a tensor can be looked at without waiting for a device."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def has_loops(values: Tensor) -> bool:
    """Whether there are loops for a tensor that Numba compiles, see :mod:`compiled`."""
    single = values.dtype != torch.float64  # the losses compute in float32 then
    return at_hand(values) and single and _numba_is_installed()


@functools.cache
def _numba_is_installed() -> bool:
    return importlib.util.find_spec("numba") is not None
