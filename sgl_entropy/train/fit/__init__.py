"""Training one drafter: the trainer, its loop, checkpoints and export."""
