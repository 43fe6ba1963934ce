"""nnU-Net's own trainer variants, which a trainer's name can build on."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
from typing import Any

PREFIX = "nnUNetTrainer"


@functools.cache
def host_variants() -> dict[str, type]:
    """nnU-Net's own trainer variants by suffix: ``nnUNetTrainer[_]<suffix>``.

    Left out are those that only set a number of epochs, alone (``5epochs``) or beside another
    variant (``DA5_10epochs``): the grammar has a part of its own for it.
    """
    import nnunetv2.training.nnUNetTrainer as package
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    variants: dict[str, type] = {}
    for module in _modules(package):
        for name, cls in inspect.getmembers(module, inspect.isclass):
            is_variant = issubclass(cls, nnUNetTrainer) and cls.__module__ == module.__name__
            if is_variant and name.startswith(PREFIX) and name != PREFIX:
                variants[name.removeprefix(PREFIX).removeprefix("_")] = cls
    without_epochs = {
        suffix: re.sub(r"(^|_)\d+ep(ochs?)?(?=_|$)", "", suffix).removeprefix("_")
        for suffix in variants
    }
    return {
        suffix: cls
        for suffix, cls in variants.items()
        if without_epochs[suffix] == suffix or without_epochs[suffix] not in {"", *variants}
    }


def _modules(package: Any) -> list[Any]:  # noqa: ANN401
    """The modules below a package that can be imported; some need optional dependencies."""
    modules = []
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if info.ispkg:
            continue
        try:
            modules.append(importlib.import_module(info.name))
        except ImportError:
            continue
    return modules


def sets_its_own_loss(variant: type) -> bool:
    """Return True if a trainer variant builds another loss than nnUNetTrainer does."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    return bool(variant._build_loss is not nnUNetTrainer._build_loss)  # type: ignore[attr-defined]
