"""What the loops for the CPU share; Numba compiles them when they are first used.

Torch's operators pass over whole maps, one after the other; these loops take a piece that the
processor's cache holds through all steps. They are for float32, and so plain that they become
vector instructions. What they compute has a counterpart in torch, for all that
:func:`devices.has_loops` denies. Those of the softmax run in the thread that calls them, and only
where torch has no other: in several they are no quicker than torch's operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
Item = TypeVar("Item")
Result = TypeVar("Result")

ZERO, ONE = np.float32(0), np.float32(1)  # a literal would make float64 of what it meets

compiled: Callable[..., Any] = numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})


def share_out(work: Callable[[Item], Result], items: Collection[Item]) -> list[Result]:
    """What work gives for each item, in as many threads as torch has.

    Where one is enough it is the caller's, which has memory at hand that it has released before.
    """
    number = min(torch.get_num_threads(), len(items))
    if number < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(number) as threads:
        return list(threads.map(work, items))


def _polynomial(
    function: Callable[[Any], Any], degree: int, domain: tuple[float, float]
) -> tuple[np.float32, ...]:
    """The coefficients of the one that is nearly the closest to a function in a domain."""
    near = np.polynomial.Chebyshev.interpolate(function, degree, domain)
    return tuple(np.float32(c) for c in near.convert(kind=np.polynomial.Polynomial).coef)


_ROUNDING = np.float32(1.5 * 2**23)  # what is added to it is rounded to a whole number
_ROUNDING_BITS = _ROUNDING.view(np.int32)
_E0, _E1, _E2, _E3, _E4, _E5, _E6 = _polynomial(np.exp2, 6, (-0.5, 0.5))  # to 2e-9
_LEAST_EXPONENT = np.float32(-151)  # 2^-150 is 0 already
_ROOT_BITS = np.float32(math.sqrt(0.5)).view(np.int32)
_LN2 = np.float32(math.log(2))
_L = _polynomial(lambda t: np.log1p(t) / t, 9, (math.sqrt(0.5) - 1, math.sqrt(2) - 1))  # to 2e-8
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7, _L8, _L9 = _L


@compiled
def power_of_two(exponent: np.float32) -> np.float32:
    """2^x for x ≤ 0, in whole vectors, which those of the standard library cannot become."""
    x = _LEAST_EXPONENT if exponent < _LEAST_EXPONENT else exponent
    whole = x + _ROUNDING
    f = x - (whole - _ROUNDING)
    power: np.float32 = _E0 + f * (_E1 + f * (_E2 + f * (_E3 + f * (_E4 + f * (_E5 + f * _E6)))))
    n = np.float32(whole).view(np.int32) - _ROUNDING_BITS
    half = n >> np.int32(1)  # in two steps, as 2^n alone may be too small for a float
    power *= _whole_power(half)
    power *= _whole_power(n - half)
    return power


@compiled
def _whole_power(n: np.int32) -> np.float32:
    bits = np.int32(n + np.int32(127)) << np.int32(23)
    power: np.float32 = np.int32(bits).view(np.float32)
    return power


@compiled
def logarithm(x: np.float32) -> np.float32:
    """The natural logarithm of a number ≥ 1, in whole vectors; of NaN it is some number."""
    bits = np.float32(x).view(np.int32)
    n = np.int32(bits - _ROOT_BITS) >> np.int32(23)
    t = np.int32(bits - (n << np.int32(23))).view(np.float32) - ONE  # x = 2^n · (1 + t)
    quotient = _L5 + t * (_L6 + t * (_L7 + t * (_L8 + t * _L9)))  # ln(1 + t) / t
    quotient = _L0 + t * (_L1 + t * (_L2 + t * (_L3 + t * (_L4 + t * quotient))))
    return np.float32(n) * _LN2 + t * quotient
