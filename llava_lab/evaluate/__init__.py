"""Leg 11: from generated text to scores."""
