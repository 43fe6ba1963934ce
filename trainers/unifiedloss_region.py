"""nnU-Net trainers of the region-based losses."""

from nnunet_unifiedloss.losses import (
    AsymmetricFocalTverskyLoss,
    AsymmetricSimilarityLoss,
    DiceLoss,
    FocalTverskyLoss,
    GeneralizedDiceLoss,
    JaccardLoss,
    LogCoshDiceLoss,
    LovaszLoss,
    PenaltyGeneralizedDiceLoss,
    SensitivitySpecificityLoss,
    SymmetricFocalTverskyLoss,
    TverskyLoss,
)
from nnunet_unifiedloss.trainer import LossTrainer, trainer_lookup


class nnUNetTrainerAsymmetricFocalTversky(LossTrainer):
    """Asymmetric focal Tversky loss."""

    loss_class = AsymmetricFocalTverskyLoss


class nnUNetTrainerAsymmetricSimilarity(LossTrainer):
    """Asymmetric similarity loss."""

    loss_class = AsymmetricSimilarityLoss


class nnUNetTrainerDice(LossTrainer):
    """Dice loss."""

    loss_class = DiceLoss


class nnUNetTrainerFocalTversky(LossTrainer):
    """Focal Tversky loss."""

    loss_class = FocalTverskyLoss


class nnUNetTrainerGeneralizedDice(LossTrainer):
    """Generalised Dice loss."""

    loss_class = GeneralizedDiceLoss


class nnUNetTrainerJaccard(LossTrainer):
    """Jaccard loss."""

    loss_class = JaccardLoss


class nnUNetTrainerLogCoshDice(LossTrainer):
    """Log-cosh Dice loss."""

    loss_class = LogCoshDiceLoss


class nnUNetTrainerLovasz(LossTrainer):
    """Lovász loss."""

    loss_class = LovaszLoss


class nnUNetTrainerPenaltyGeneralizedDice(LossTrainer):
    """Generalised Dice loss with a penalty on errors."""

    loss_class = PenaltyGeneralizedDiceLoss


class nnUNetTrainerSensitivitySpecificity(LossTrainer):
    """Sensitivity-specificity loss."""

    loss_class = SensitivitySpecificityLoss


class nnUNetTrainerSymmetricFocalTversky(LossTrainer):
    """Symmetric focal Tversky loss."""

    loss_class = SymmetricFocalTverskyLoss


class nnUNetTrainerTversky(LossTrainer):
    """Tversky loss."""

    loss_class = TverskyLoss


__getattr__ = trainer_lookup(globals())
