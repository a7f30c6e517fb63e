"""The strategies, one published method per file."""
