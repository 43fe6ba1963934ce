"""The loss catalogue, usable without nnU-Net; see :class:`SegmentationLoss` for the interface."""

from nnunet_unifiedloss.losses.base import CompoundLoss, OverlapLoss, SegmentationLoss
from nnunet_unifiedloss.losses.boundary import (
    BoundaryLoss,
    DistancePenalizedCrossEntropyLoss,
    HausdorffDTLoss,
    HausdorffERLoss,
    ShapeAwareLoss,
)
from nnunet_unifiedloss.losses.combinations import (
    ComboLoss,
    DiceBoundaryLoss,
    DiceCrossEntropyLoss,
    DiceFocalLoss,
    DiceHausdorffLoss,
    DiceTopKLoss,
    ExponentialLogarithmicLoss,
)
from nnunet_unifiedloss.losses.cross_entropy import (
    BalancedCrossEntropyLoss,
    CrossEntropyLoss,
    TopKLoss,
    WeightedCrossEntropyLoss,
)
from nnunet_unifiedloss.losses.dice import (
    DiceLoss,
    GeneralizedDiceLoss,
    LogCoshDiceLoss,
    PenaltyGeneralizedDiceLoss,
    SensitivitySpecificityLoss,
)
from nnunet_unifiedloss.losses.focal import AsymmetricFocalLoss, FocalLoss, SymmetricFocalLoss
from nnunet_unifiedloss.losses.lovasz import LovaszLoss
from nnunet_unifiedloss.losses.structural import StructuralSimilarityLoss
from nnunet_unifiedloss.losses.tversky import (
    AsymmetricFocalTverskyLoss,
    AsymmetricSimilarityLoss,
    FocalTverskyLoss,
    JaccardLoss,
    SymmetricFocalTverskyLoss,
    TverskyLoss,
)
from nnunet_unifiedloss.losses.unified_focal import SymmetricUnifiedFocalLoss, UnifiedFocalLoss

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
    "OverlapLoss",
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
