"""From records to figures and a verdict: pure functions."""
