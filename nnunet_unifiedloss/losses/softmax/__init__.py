"""The softmax and its slopes: in whole maps for any device, in compiled loops on the CPU."""

from nnunet_unifiedloss.losses.softmax.split import SoftmaxSplit

__all__ = ["SoftmaxSplit"]
