"""Trainer classes from their names: nnU-Net asks a module for a name, the module builds it."""

from __future__ import annotations

import difflib
import functools
import warnings
from collections.abc import Callable
from typing import Any

from nnunet_unifiedloss.training.catalogue import catalogue
from nnunet_unifiedloss.training.host_variants import PREFIX, host_variants
from nnunet_unifiedloss.training.names import loss_of, parse
from nnunet_unifiedloss.training.trainer import LossTrainer

__all__ = ["build_trainer", "trainer_lookup"]


def trainer_lookup(module: dict[str, Any]) -> Callable[[str], type[LossTrainer]]:
    """A module's ``__getattr__`` that builds trainers from their names.

    nnU-Net asks every module for the name that it looks for. A module answers for the losses whose
    trainer it defines.

    Args:
        module: The module's ``globals()``.

    Returns:
        A function from a trainer's name to its class; it raises AttributeError for names that the
        module does not answer for, and :class:`~.names.TrainerNameError` for wrong ones.
    """

    def __getattr__(name: str) -> type[LossTrainer]:  # noqa: N807 (PEP 562)
        loss = loss_of(name)
        parent = module.get(name.partition("_")[0])
        if loss is None:
            _warn_of_typing_error(name)
        if loss is None or parent is None:
            raise AttributeError(f"module {module['__name__']!r} has no attribute {name!r}")
        module[name] = build_trainer(name, parent)
        trainer: type[LossTrainer] = module[name]
        return trainer

    return __getattr__


@functools.cache
def _warn_of_typing_error(name: str) -> None:
    """Warn with the closest name, because nnU-Net only says that it finds no such trainer."""
    stem = name.partition("_")[0]
    known = [entry.trainer for entry in catalogue()]
    close = difflib.get_close_matches(stem, known, n=1, cutoff=0.9)
    if close and name.removeprefix(PREFIX).removeprefix("_") not in host_variants():
        warnings.warn(f"there is no loss of {stem}; did you mean {close[0]}?", stacklevel=3)


def build_trainer(name: str, parent: type[LossTrainer]) -> type[LossTrainer]:
    """The trainer class of a name.

    Args:
        name: A trainer's name, which becomes the ``__name__``.
        parent: The trainer of the same loss with default parameters.

    Raises:
        TrainerNameError: The name breaks the grammar.
    """
    parsed = parse(name)
    bases = (parent,) if parsed.base is None else (parent, host_variants()[parsed.base])
    attributes = {
        "__module__": parent.__module__,
        "__doc__": parent.__doc__,
        "loss_parameters": parsed.parameters,
        "set_scale": parsed.scale,
        "set_learning_rate": parsed.learning_rate,
        "set_epochs": parsed.epochs,
        "set_iterations": parsed.iterations,
    }
    return type(name, bases, attributes)
