"""What the loops for the CPU share; Numba compiles them when they are first used.

Torch's operators pass over whole maps, one after the other; these loops take a piece that the
processor's cache holds through all steps. They are for float32, and so plain that they become
vector instructions. What they compute has a counterpart in torch, for all that
:func:`devices.has_loops` denies. Short ones run in the thread that calls them: threads of their own
would have to wait for torch's, which go on spinning for a while after each operator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ZERO, ONE = np.float32(0), np.float32(1)  # a literal would make float64 of what it meets

compiled: Callable[..., Any] = numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
