"""The demo: ``sweep`` and ``compare`` on a synthetic data set."""
