"""6. Connectors, one a module."""
