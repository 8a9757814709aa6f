"""Metrics: questions and predictions -> scores with intervals."""
