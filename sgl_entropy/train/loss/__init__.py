"""What a drafter is trained to minimise."""
