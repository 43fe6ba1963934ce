"""A loss of one's own and its trainer."""

from nnunet_unifiedloss.losses.arguments import check_number
from nnunet_unifiedloss.losses.view import View
from torch import Tensor

from nnunet_unifiedloss.losses.base import SegmentationLoss
from nnunet_unifiedloss.trainer import LossTrainer, trainer_lookup


class PowerCrossEntropyLoss(SegmentationLoss):
    """The mean of CE to a power: above 1 it looks at voxels that are badly wrong."""

    paper, when, when_not = "mine", "To try it.", "With noisy labels."

    def __init__(self, *, power: float = 1.5, **options) -> None:
        super().__init__(**options)
        self.power = check_number("power", power, minimum=1)  # below it the slope at 0 is infinite

    def evaluate(self, view: View) -> Tensor:
        """Mean of CE^power over the voxels that count."""
        return view.mean_over_voxels(view.cross_entropy**self.power)


class nnUNetTrainerPowerCrossEntropy(LossTrainer):
    """It takes _power2, _lr0.02, _NoMirroring, _5epochs, … as any other."""

    loss_class = PowerCrossEntropyLoss


__getattr__ = trainer_lookup(globals())
