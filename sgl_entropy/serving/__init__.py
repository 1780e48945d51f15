"""What every SGLang release's runtime needs and no release owns. Nothing here imports sglang."""
