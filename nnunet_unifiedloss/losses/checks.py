"""Checks of constructor arguments: errors that name the argument, the value and the range.

NumPy and torch scalars count as numbers, arrays and tensors as lists.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

__all__ = [
    "check_count",
    "check_flag",
    "check_label",
    "check_number",
    "check_spacing",
    "check_weights",
    "plain",
]


def plain(value: object) -> Any:  # noqa: ANN401 (whatever the array holds)
    """Return the number or list in a NumPy or torch scalar, array or tensor; others unchanged."""
    convert = getattr(value, "tolist", None)
    return convert() if callable(convert) else value


def check_flag(name: str, value: object) -> bool:
    """Return a bool, or raise a TypeError that names the argument."""
    value = plain(value)
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return value


def check_number(
    name: str,
    value: object,
    *,
    minimum: float = 0.0,
    maximum: float = math.inf,
    above: bool = False,
    below: bool = False,
) -> float:
    """Return a number in a range, or raise an error that names the argument and the range.

    Args:
        name: The argument's name.
        value: Its value.
        minimum: Smallest value.
        maximum: Largest value.
        above: The value must be larger than the minimum.
        below: The value must be smaller than the maximum.
    """
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    number = int(value) if isinstance(value, numbers.Integral) else float(value)
    fits = minimum <= number <= maximum and math.isfinite(number)
    if not fits or (above and number == minimum) or (below and number == maximum):
        upper = f" and {'<' if below else '<='} {maximum:g}" if math.isfinite(maximum) else ""
        raise ValueError(
            f"{name}: must be {'>' if above else '>='} {minimum:g}{upper}, got {value!r}"
        )
    return number


def check_weights(name: str, value: object) -> tuple[float, ...]:
    """Return one weight for each class, or raise an error that names the argument."""
    value = plain(value)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name}: expected a list of numbers, got {value!r}")
    weights = tuple(check_number(f"{name}[{i}]", weight) for i, weight in enumerate(value))
    if len(weights) < 2 or not any(weights):
        raise ValueError(f"{name}: expected one weight for each class, not all 0, got {value!r}")
    return weights


def check_count(name: str, value: object) -> int:
    """Return a whole number of at least 1, or raise an error that names the argument."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    return int(check_number(name, value, minimum=1))


def check_label(name: str, value: object) -> int | None:
    """Return a label or None, or raise a TypeError that names the argument."""
    value = plain(value)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected an int or None, got {value!r}")
    return int(value)


def check_spacing(value: object) -> tuple[float, ...] | None:
    """Return a voxel size along each of two or three axes, or raise an error."""
    value = plain(value)
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"spacing: expected None or two or three numbers, got {value!r}")
    if len(value) not in (2, 3):
        raise ValueError(f"spacing: expected None or two or three numbers, got {value!r}")
    return tuple(check_number(f"spacing[{i}]", v, above=True) for i, v in enumerate(value))
