"""What is sent, and when: pure, seeded, made before the run."""
