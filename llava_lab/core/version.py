"""The package's version, which every fingerprint holds.

A change of what a stage computes raises it, so that no stage of the version before is found again.
"""

__version__ = "0.8.0"
