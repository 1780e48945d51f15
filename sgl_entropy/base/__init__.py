"""What any room may use: files, texts, tables, progress, provenance. Standard library only."""
