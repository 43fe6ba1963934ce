"""The catalogue of trainers, one for each loss of the registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nnunet_unifiedloss.losses import SegmentationLoss
from nnunet_unifiedloss.training.host_variants import PREFIX
from nnunet_unifiedloss.training.scales import scale_of

__all__ = ["TrainerEntry", "catalogue"]


@dataclass(frozen=True)
class TrainerEntry:
    """One trainer of the catalogue.

    Attributes:
        trainer: Name of the trainer.
        loss: Name of the loss class.
        parameters: Hyperparameters with their defaults.
        paper: Where the loss comes from.
        when: One line on when to use it.
        when_not: One line on when not to.
        scale: Factor that its trainer multiplies the loss by.
        family: distribution, region, boundary, structural or compound.
    """

    trainer: str
    loss: str
    parameters: dict[str, Any]
    paper: str
    when: str
    when_not: str
    scale: float
    family: str


def catalogue() -> list[TrainerEntry]:
    """Every trainer with the default parameters of its loss, sorted by name.

    Example:
        >>> [entry.parameters for entry in catalogue() if entry.loss == "FocalLoss"]
        [{'gamma': 2, 'alpha': None}]
    """
    return [
        TrainerEntry(
            trainer=PREFIX + name.removesuffix("Loss"),
            loss=name,
            parameters=cls.defaults(),
            paper=cls.paper,
            when=cls.when,
            when_not=cls.when_not,
            scale=scale_of(cls),
            family=cls.family,
        )
        for name, cls in sorted(SegmentationLoss.registry.items())
    ]
