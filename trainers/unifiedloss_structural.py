"""nnU-Net trainers of the structural losses."""

from nnunet_unifiedloss.losses import (
    StructuralSimilarityLoss,
)
from nnunet_unifiedloss.trainer import LossTrainer, trainer_lookup


class nnUNetTrainerStructuralSimilarity(LossTrainer):
    """Structural similarity loss."""

    loss_class = StructuralSimilarityLoss


__getattr__ = trainer_lookup(globals())
