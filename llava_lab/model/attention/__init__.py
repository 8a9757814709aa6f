"""Attention over a packed forest: what is computed at once, by which kernel, with which cache."""
