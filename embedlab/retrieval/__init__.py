"""Retrieval: collections in BEIR's form, exact search, BM25, and the measures; only `search` and `ranking` need torch."""
