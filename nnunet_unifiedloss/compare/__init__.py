"""Which trainer is better on this data: measured, compared, reported.

``comparison`` compares, ``plots`` draws and ``report`` writes what came of it. They are imported
from their modules: the processes that measure, each started anew, would otherwise wait for pandas,
matplotlib and torch, which they have no use for.
"""
