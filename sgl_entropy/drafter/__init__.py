"""Drafters in plain terms: configs, checkpoints, checks, conversion, and the torch reference.

Importing the package imports neither torch nor transformers.
"""
