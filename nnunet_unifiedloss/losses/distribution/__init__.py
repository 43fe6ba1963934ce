"""Losses of the voxels' distribution: cross entropy and its relatives."""
