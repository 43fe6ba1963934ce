"""What can be done where tensors are."""

from __future__ import annotations

import functools
import importlib.util
import warnings

import torch
from torch import Tensor


def at_hand(values: Tensor) -> bool:
    """Whether the numbers of a tensor can be looked at without waiting for a device."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def has_loops(values: Tensor) -> bool:
    """Whether there are loops for a tensor that Numba compiles, see :mod:`compiled`.

    Subclasses may hold no numbers, such as the tensors that tools trace with.
    """
    return (
        at_hand(values)
        and type(values) in (Tensor, torch.nn.Parameter)
        and values.dtype != torch.float64  # the losses compute in float32 then
        and _numba_works()
    )


@functools.cache
def _numba_works() -> bool:
    if importlib.util.find_spec("numba") is None:
        return False
    try:
        importlib.import_module("numba")
    except ImportError as error:  # as where NumPy is too new for it
        warnings.warn(f"numba: losses take longer on the CPU without it: {error}", stacklevel=2)
        return False
    return True
