"""Command line: one module a verb, which parses, calls and prints.

What needs torch is imported inside of `main`, so that `--help` answers at once.
"""
