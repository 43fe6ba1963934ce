"""Losses for severe class imbalance as nnU-Net v2 trainers."""

from importlib.metadata import version

__version__ = version("nnunet-unifiedloss")
