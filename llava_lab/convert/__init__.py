"""Convert: released checkpoints -> our parts; our models -> transformers' classes."""
