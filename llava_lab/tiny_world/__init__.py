"""Tiny world: a seed -> images, conversations and questions in the official file formats."""
