"""Policies replayed over a trace: what each would have saved or changed."""
