"""The loss catalogue: ``torch.nn.Module`` losses for segmentation, usable without nnU-Net.

All take ``loss(logits, target)``; see :class:`SegmentationLoss` for shapes and common options.
"""

from nnunet_unifiedloss.losses.base import CompoundLoss, SegmentationLoss
from nnunet_unifiedloss.losses.boundary import (
    BoundaryLoss,
    HausdorffDTLoss,
    HausdorffERLoss,
    ShapeAwareLoss,
)
from nnunet_unifiedloss.losses.compound.dice_plus import (
    DiceBoundaryLoss,
    DiceCrossEntropyLoss,
    DiceFocalLoss,
    DiceHausdorffLoss,
    DiceTopKLoss,
)
from nnunet_unifiedloss.losses.compound.unified_focal import (
    SymmetricUnifiedFocalLoss,
    UnifiedFocalLoss,
)
from nnunet_unifiedloss.losses.compound.weighted_dice import (
    ComboLoss,
    ExponentialLogarithmicLoss,
)
from nnunet_unifiedloss.losses.distribution.cross_entropy import (
    BalancedCrossEntropyLoss,
    CrossEntropyLoss,
    DistancePenalizedCrossEntropyLoss,
    TopKLoss,
    WeightedCrossEntropyLoss,
)
from nnunet_unifiedloss.losses.distribution.focal import (
    AsymmetricFocalLoss,
    FocalLoss,
    SymmetricFocalLoss,
)
from nnunet_unifiedloss.losses.region.dice import (
    DiceLoss,
    GeneralizedDiceLoss,
    LogCoshDiceLoss,
    PenaltyGeneralizedDiceLoss,
)
from nnunet_unifiedloss.losses.region.jaccard import (
    JaccardLoss,
)
from nnunet_unifiedloss.losses.region.lovasz import (
    LovaszLoss,
)
from nnunet_unifiedloss.losses.region.sensitivity import (
    SensitivitySpecificityLoss,
)
from nnunet_unifiedloss.losses.region.tversky import (
    AsymmetricFocalTverskyLoss,
    AsymmetricSimilarityLoss,
    FocalTverskyLoss,
    SymmetricFocalTverskyLoss,
    TverskyLoss,
)
from nnunet_unifiedloss.losses.structural import (
    StructuralSimilarityLoss,
)

__all__ = [
    "AsymmetricFocalLoss",
    "AsymmetricFocalTverskyLoss",
    "AsymmetricSimilarityLoss",
    "BalancedCrossEntropyLoss",
    "BoundaryLoss",
    "ComboLoss",
    "CompoundLoss",
    "CrossEntropyLoss",
    "DiceBoundaryLoss",
    "DiceCrossEntropyLoss",
    "DiceFocalLoss",
    "DiceHausdorffLoss",
    "DiceLoss",
    "DiceTopKLoss",
    "DistancePenalizedCrossEntropyLoss",
    "ExponentialLogarithmicLoss",
    "FocalLoss",
    "FocalTverskyLoss",
    "GeneralizedDiceLoss",
    "HausdorffDTLoss",
    "HausdorffERLoss",
    "JaccardLoss",
    "LogCoshDiceLoss",
    "LovaszLoss",
    "PenaltyGeneralizedDiceLoss",
    "SegmentationLoss",
    "SensitivitySpecificityLoss",
    "ShapeAwareLoss",
    "StructuralSimilarityLoss",
    "SymmetricFocalLoss",
    "SymmetricFocalTverskyLoss",
    "SymmetricUnifiedFocalLoss",
    "TopKLoss",
    "TverskyLoss",
    "UnifiedFocalLoss",
    "WeightedCrossEntropyLoss",
]
