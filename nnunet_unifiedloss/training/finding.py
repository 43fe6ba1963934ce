"""The result of one of doctor's checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        check: Name of the check.
        status: ``error`` if a training would fail or train something else.
        detail: The state of the environment.
        remedy: The command or action that fixes it; empty if there is nothing to fix.
    """

    check: str
    status: Status
    detail: str
    remedy: str = ""
