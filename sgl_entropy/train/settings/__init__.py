"""One settings file: sections with typed, checked keys."""
