"""Measure, compare and report the results of trainers.

``comparison`` compares, ``plots`` draws and ``report`` writes the result. Import them from their
modules: importing them here would slow down every process that measures, because each would load
pandas, matplotlib and torch, which it does not need.
"""
