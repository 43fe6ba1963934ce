"""The trainer to derive from, and the look-up of names, for modules of trainers."""

from nnunet_unifiedloss.training.lookup import trainer_lookup
from nnunet_unifiedloss.training.trainer import LossTrainer

__all__ = ["LossTrainer", "trainer_lookup"]
