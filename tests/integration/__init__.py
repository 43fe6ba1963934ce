"""nnU-Net's own integration suite with a trainer of this package, checked by a program."""
