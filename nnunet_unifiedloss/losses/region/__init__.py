"""Losses of the overlap of prediction and reference."""
