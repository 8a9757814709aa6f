"""Legs 1 to 3: from a row of a file to token ids, labels and pixels."""
