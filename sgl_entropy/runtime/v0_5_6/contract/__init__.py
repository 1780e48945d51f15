"""Every use that we make of SGLang: written down by ``generate``, compared by ``table``."""
