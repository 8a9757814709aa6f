"""What every layer uses: files, locks, signals, fingerprints; knows nothing of models."""
