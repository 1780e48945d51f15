"""Every function of SGLang that the runtime uses."""
