"""The door for SGLang v0.5.6.post2: patches call functions of these modules and nothing else."""
