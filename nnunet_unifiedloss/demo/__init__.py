"""The guided run: a phantom data set, nnU-Net's own commands on it, and what came of them."""
