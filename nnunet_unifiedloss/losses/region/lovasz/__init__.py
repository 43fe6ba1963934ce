"""The Lovász loss: the loss, and each voxel's step by maps (any device) or loops (CPU)."""

from nnunet_unifiedloss.losses.region.lovasz.loss import LovaszLoss

__all__ = ["LovaszLoss"]
