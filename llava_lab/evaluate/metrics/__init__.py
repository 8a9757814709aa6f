"""Metrics: answers -> scores."""
