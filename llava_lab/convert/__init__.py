"""Checkpoints in and out: released layouts to our parts, our models to transformers' classes."""
