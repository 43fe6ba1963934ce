"""nnU-Net trainers of the compound losses."""

from nnunet_unifiedloss.losses import (
    ComboLoss,
    DiceBoundaryLoss,
    DiceCrossEntropyLoss,
    DiceFocalLoss,
    DiceHausdorffLoss,
    DiceTopKLoss,
    ExponentialLogarithmicLoss,
    SymmetricUnifiedFocalLoss,
    UnifiedFocalLoss,
)
from nnunet_unifiedloss.trainer import LossTrainer, trainer_lookup


class nnUNetTrainerCombo(LossTrainer):
    """Combo loss."""

    loss_class = ComboLoss


class nnUNetTrainerDiceBoundary(LossTrainer):
    """Dice loss plus boundary loss."""

    loss_class = DiceBoundaryLoss


class nnUNetTrainerDiceCrossEntropy(LossTrainer):
    """Dice loss plus cross entropy."""

    loss_class = DiceCrossEntropyLoss


class nnUNetTrainerDiceFocal(LossTrainer):
    """Dice loss plus focal loss."""

    loss_class = DiceFocalLoss


class nnUNetTrainerDiceHausdorff(LossTrainer):
    """Dice loss plus Hausdorff loss by distance transforms."""

    loss_class = DiceHausdorffLoss


class nnUNetTrainerDiceTopK(LossTrainer):
    """Dice loss plus top-k loss."""

    loss_class = DiceTopKLoss


class nnUNetTrainerExponentialLogarithmic(LossTrainer):
    """Exponential logarithmic loss."""

    loss_class = ExponentialLogarithmicLoss


class nnUNetTrainerSymmetricUnifiedFocal(LossTrainer):
    """Symmetric Unified Focal loss."""

    loss_class = SymmetricUnifiedFocalLoss


class nnUNetTrainerUnifiedFocal(LossTrainer):
    """Unified Focal loss."""

    loss_class = UnifiedFocalLoss


__getattr__ = trainer_lookup(globals())
