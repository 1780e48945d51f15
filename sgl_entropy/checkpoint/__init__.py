"""Safetensors checkpoints by somebody else: read by their headers, checked, written whole."""
