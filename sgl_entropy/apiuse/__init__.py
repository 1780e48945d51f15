"""What a host package offers, read from its sources, against what we use of it."""
