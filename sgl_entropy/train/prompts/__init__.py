"""Prompts: read from texts, kept in a file, ordered, and the draft vocabulary."""
