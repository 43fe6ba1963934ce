"""Losses of local structure: the loss, and its statistics by maps (any device) or planes (CPU)."""

from nnunet_unifiedloss.losses.structural.loss import StructuralSimilarityLoss

__all__ = ["StructuralSimilarityLoss"]
