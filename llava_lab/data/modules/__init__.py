"""DataModules: what a stage reads."""
