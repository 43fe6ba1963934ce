"""Helpers for files, processes and the terminal; private."""
