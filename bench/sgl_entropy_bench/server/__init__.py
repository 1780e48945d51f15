"""Servers as processes: how they are started, watched and ended."""
