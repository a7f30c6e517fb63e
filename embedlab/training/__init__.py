"""One run: a strategy on the data that all strategies share, trained, tested, and its run folder written."""
