"""Which drafted tokens stand: EASD's rule, on plain tensors."""
