"""The constants that trainers multiply their losses by."""

from __future__ import annotations

from nnunet_unifiedloss.losses import SegmentationLoss

__all__ = ["scale_of"]

# measured by benchmarks/gradient_norm.py: 1 / (gradient relative to that of nnU-Net's default) of
# the losses where this ratio is nearly constant
_SCALES = {"ComboLoss": 3.12, "DiceFocalLoss": 1.09, "UnifiedFocalLoss": 3.57}


def scale_of(loss: type[SegmentationLoss]) -> float:
    """The factor that gives a loss gradients of the size of those of nnU-Net's default."""
    return _SCALES.get(loss.__name__, 1.0)
