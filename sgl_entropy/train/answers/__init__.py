"""Answers by the target: written here or by a server, kept in a file."""
