"""Advice on trainers from the labels of a data set: ``advise`` in ``advice``."""
