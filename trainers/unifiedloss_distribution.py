"""nnU-Net trainers of the distribution-based losses."""

from nnunet_unifiedloss.losses import (
    AsymmetricFocalLoss,
    BalancedCrossEntropyLoss,
    CrossEntropyLoss,
    DistancePenalizedCrossEntropyLoss,
    FocalLoss,
    SymmetricFocalLoss,
    TopKLoss,
    WeightedCrossEntropyLoss,
)
from nnunet_unifiedloss.trainer import LossTrainer, trainer_lookup


class nnUNetTrainerAsymmetricFocal(LossTrainer):
    """Asymmetric focal loss."""

    loss_class = AsymmetricFocalLoss


class nnUNetTrainerBalancedCrossEntropy(LossTrainer):
    """Balanced cross entropy."""

    loss_class = BalancedCrossEntropyLoss


class nnUNetTrainerCrossEntropy(LossTrainer):
    """Cross entropy."""

    loss_class = CrossEntropyLoss


class nnUNetTrainerDistancePenalizedCrossEntropy(LossTrainer):
    """Distance-penalised cross entropy."""

    loss_class = DistancePenalizedCrossEntropyLoss


class nnUNetTrainerFocal(LossTrainer):
    """Focal loss."""

    loss_class = FocalLoss


class nnUNetTrainerSymmetricFocal(LossTrainer):
    """Symmetric focal loss."""

    loss_class = SymmetricFocalLoss


class nnUNetTrainerTopK(LossTrainer):
    """Top-k loss."""

    loss_class = TopKLoss


class nnUNetTrainerWeightedCrossEntropy(LossTrainer):
    """Weighted cross entropy."""

    loss_class = WeightedCrossEntropyLoss


__getattr__ = trainer_lookup(globals())
