"""embedlab compares ways of turning decoder-only language models into text embedders."""

__version__ = "0.1.0"
