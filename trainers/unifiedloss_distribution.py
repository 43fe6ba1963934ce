"""nnU-Net trainers of the distribution-based losses."""

from nnunet_unifiedloss.losses import (
    AsymmetricFocalLoss,
    CrossEntropyLoss,
    FocalLoss,
    SymmetricFocalLoss,
)
from nnunet_unifiedloss.trainer import LossTrainer, trainer_lookup


class nnUNetTrainerCrossEntropy(LossTrainer):
    """Cross entropy."""

    loss_class = CrossEntropyLoss


class nnUNetTrainerFocal(LossTrainer):
    """Focal loss."""

    loss_class = FocalLoss


class nnUNetTrainerSymmetricFocal(LossTrainer):
    """Symmetric focal loss."""

    loss_class = SymmetricFocalLoss


class nnUNetTrainerAsymmetricFocal(LossTrainer):
    """Asymmetric focal loss."""

    loss_class = AsymmetricFocalLoss


__getattr__ = trainer_lookup(globals())
