"""What SGLang v0.5.6.post2 lacks without CUDA, in plain torch."""
