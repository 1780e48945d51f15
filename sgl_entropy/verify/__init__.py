"""Which drafted tokens are kept: EASD's rule, on plain tensors."""
