"""The file of measurements that docs/losses.md is made of."""

from __future__ import annotations

import json
from pathlib import Path


def save(path: Path, **columns: dict[str, float]) -> None:
    """Set columns (name → loss → value) of the file and keep the others."""
    table = json.loads(path.read_text()) if path.exists() else {}
    for name, column in columns.items():
        table[name] = {loss: float(f"{value:.3g}") for loss, value in sorted(column.items())}
    path.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
