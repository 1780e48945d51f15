"""What a training needs of its machine: processes, signals, the fast dtype."""
