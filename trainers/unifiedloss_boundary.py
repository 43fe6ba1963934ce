"""nnU-Net trainers of the boundary-based losses."""

from nnunet_unifiedloss.losses import (
    BoundaryLoss,
    HausdorffDTLoss,
    HausdorffERLoss,
    ShapeAwareLoss,
)
from nnunet_unifiedloss.trainer import LossTrainer, trainer_lookup


class nnUNetTrainerBoundary(LossTrainer):
    """Boundary loss."""

    loss_class = BoundaryLoss


class nnUNetTrainerHausdorffDT(LossTrainer):
    """Hausdorff loss by distance transforms."""

    loss_class = HausdorffDTLoss


class nnUNetTrainerHausdorffER(LossTrainer):
    """Hausdorff loss by erosions."""

    loss_class = HausdorffERLoss


class nnUNetTrainerShapeAware(LossTrainer):
    """Shape-aware loss."""

    loss_class = ShapeAwareLoss


__getattr__ = trainer_lookup(globals())
