"""nnU-Net trainers of the region-based losses."""

from nnunet_unifiedloss.losses import (
    AsymmetricFocalTverskyLoss,
    DiceLoss,
    FocalTverskyLoss,
    SymmetricFocalTverskyLoss,
    TverskyLoss,
)
from nnunet_unifiedloss.trainer import LossTrainer, trainer_lookup


class nnUNetTrainerDice(LossTrainer):
    """Dice loss."""

    loss_class = DiceLoss


class nnUNetTrainerTversky(LossTrainer):
    """Tversky loss."""

    loss_class = TverskyLoss


class nnUNetTrainerFocalTversky(LossTrainer):
    """Focal Tversky loss."""

    loss_class = FocalTverskyLoss


class nnUNetTrainerSymmetricFocalTversky(LossTrainer):
    """Symmetric focal Tversky loss."""

    loss_class = SymmetricFocalTverskyLoss


class nnUNetTrainerAsymmetricFocalTversky(LossTrainer):
    """Asymmetric focal Tversky loss."""

    loss_class = AsymmetricFocalTverskyLoss


__getattr__ = trainer_lookup(globals())
