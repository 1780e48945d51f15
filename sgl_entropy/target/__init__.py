"""The target read in plain torch: its config, layers, tokenizer and fingerprint."""
