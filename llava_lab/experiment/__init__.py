"""Experiments as values: composed, built, fitted, found again."""
