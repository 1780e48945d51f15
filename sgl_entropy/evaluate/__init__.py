"""Acceptance without a server: how many drafted tokens the target would take."""
