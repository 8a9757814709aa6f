"""4. Encoders, one a module."""
