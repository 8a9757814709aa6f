"""Leg 12: from run files to tables."""
