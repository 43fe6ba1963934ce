"""The trainers that nnU-Net finds by name; the folder that ``nnUNet_extTrainer`` points to.

As a package it looks a name up in all of its modules, which is what ``nnunet-unifiedloss install``
makes use of.
"""

import importlib
import pkgutil
from typing import Any


def __getattr__(name: str) -> Any:  # noqa: ANN401 (PEP 562)
    if name.startswith("nnUNetTrainer"):
        for info in pkgutil.iter_modules(__path__):
            module = importlib.import_module(f"{__name__}.{info.name}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
