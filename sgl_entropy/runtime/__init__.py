"""The only rooms that import sglang, one folder per supported release."""
