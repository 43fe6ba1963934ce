"""The loss catalogue: ``torch.nn.Module`` losses for segmentation, usable without nnU-Net.

All take ``loss(logits, target)``; see :class:`SegmentationLoss` for shapes and common options.
"""

from nnunet_unifiedloss.losses.base import CompoundLoss, SegmentationLoss
from nnunet_unifiedloss.losses.compound import (
    ComboLoss,
    DiceCrossEntropyLoss,
    SymmetricUnifiedFocalLoss,
    UnifiedFocalLoss,
)
from nnunet_unifiedloss.losses.distribution import (
    AsymmetricFocalLoss,
    CrossEntropyLoss,
    FocalLoss,
    SymmetricFocalLoss,
)
from nnunet_unifiedloss.losses.region import (
    AsymmetricFocalTverskyLoss,
    DiceLoss,
    FocalTverskyLoss,
    SymmetricFocalTverskyLoss,
    TverskyLoss,
)

__all__ = [
    "AsymmetricFocalLoss",
    "AsymmetricFocalTverskyLoss",
    "ComboLoss",
    "CompoundLoss",
    "CrossEntropyLoss",
    "DiceCrossEntropyLoss",
    "DiceLoss",
    "FocalLoss",
    "FocalTverskyLoss",
    "SegmentationLoss",
    "SymmetricFocalLoss",
    "SymmetricFocalTverskyLoss",
    "SymmetricUnifiedFocalLoss",
    "TverskyLoss",
    "UnifiedFocalLoss",
]
