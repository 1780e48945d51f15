"""Recipes and seeds compared over one store."""
