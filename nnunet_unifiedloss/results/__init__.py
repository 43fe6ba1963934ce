"""nnU-Net's folders on disk, read without torch and without nnU-Net."""
