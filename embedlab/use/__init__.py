"""Use what was trained: load it, embed, score, rank and search, from Python and from the command line."""
