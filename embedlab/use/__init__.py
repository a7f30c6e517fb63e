"""Use what was trained: load it, embed, score, rank and search, from Python and from the command line."""

from embedlab.use.loading import load
from embedlab.use.model import Model

__all__ = ["Model", "load"]
