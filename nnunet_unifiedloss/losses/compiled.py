"""What the loops for the CPU share; Numba compiles them when they are first used.

Torch's operators pass over whole maps, one after the other; these loops take a piece that the
processor's cache holds through all steps. They are for float32, and so plain that they become
vector instructions. What they compute has a counterpart in torch, for all that
:func:`devices.has_loops` denies. Modules of loops are imported when they are needed, since Numba
takes its time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
Job = TypeVar("Job")
Result = TypeVar("Result")

ZERO, ONE = np.float32(0), np.float32(1)  # a literal would make float64 of what it meets

compiled: Callable[..., Any] = numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})


def in_threads(work: Callable[[Job], Result], jobs: Iterable[Job]) -> list[Result]:
    """Do jobs in as many threads as torch uses."""
    if torch.get_num_threads() == 1:
        return [work(job) for job in jobs]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return list(threads.map(work, jobs))


def shares(length: int) -> list[tuple[int, int]]:
    """Start and end of each thread's share of a length."""
    threads = torch.get_num_threads()
    edges = (length * i // threads for i in range(threads + 1))
    return [share for share in itertools.pairwise(edges) if share[0] < share[1]]
