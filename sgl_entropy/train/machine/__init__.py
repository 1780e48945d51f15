"""What a training needs of its machine: processes, signals, memory, fast dtype, progress line."""
