"""A custom loss and its trainer."""

from torch import Tensor

from nnunet_unifiedloss.losses import SegmentationLoss
from nnunet_unifiedloss.losses.checks import check_number
from nnunet_unifiedloss.losses.probabilities import Batch
from nnunet_unifiedloss.trainer import LossTrainer, trainer_lookup


class PowerCrossEntropyLoss(SegmentationLoss):
    """Mean of a power of the cross entropy; exponents above 1 emphasise badly wrong voxels."""

    family = "distribution"
    paper = "unpublished"
    when = "As an example."
    when_not = "Noisy labels."

    def __init__(self, *, power: float = 1.5, **options) -> None:
        super().__init__(**options)
        self.power = check_number("power", power, minimum=1)  # below 1, the gradient at 0 is ∞

    def evaluate(self, batch: Batch) -> Tensor:
        """Mean of CE^power over the voxels that count."""
        return batch.mean_over_voxels(batch.cross_entropy**self.power)


class nnUNetTrainerPowerCrossEntropy(LossTrainer):
    """A trainer that accepts _power2, _lr0.02, _NoMirroring, _5epochs, … in its name."""

    loss_class = PowerCrossEntropyLoss


__getattr__ = trainer_lookup(globals())
