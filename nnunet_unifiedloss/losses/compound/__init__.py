"""Weighted sums of losses; all terms of one share the softmax and the counts."""
