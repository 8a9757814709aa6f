"""Leg 10 and what runs it: losses, stages, optimizers and the record of a run."""
