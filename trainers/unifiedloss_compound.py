"""nnU-Net trainers of the compound losses."""

from nnunet_unifiedloss.losses import (
    ComboLoss,
    DiceCrossEntropyLoss,
    SymmetricUnifiedFocalLoss,
    UnifiedFocalLoss,
)
from nnunet_unifiedloss.trainer import LossTrainer, trainer_lookup


class nnUNetTrainerCombo(LossTrainer):
    """Combo loss."""

    loss_class = ComboLoss


class nnUNetTrainerDiceCrossEntropy(LossTrainer):
    """Dice loss plus cross entropy, nnU-Net's default."""

    loss_class = DiceCrossEntropyLoss


class nnUNetTrainerSymmetricUnifiedFocal(LossTrainer):
    """Symmetric Unified Focal loss."""

    loss_class = SymmetricUnifiedFocalLoss


class nnUNetTrainerUnifiedFocal(LossTrainer):
    """Unified Focal loss."""

    loss_class = UnifiedFocalLoss


__getattr__ = trainer_lookup(globals())
