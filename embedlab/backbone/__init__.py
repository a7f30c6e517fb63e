"""The decoder: loaded, proven, packed, read at any block, tuned."""

from embedlab.backbone.backbone import Backbone
from embedlab.backbone.hooks import FINAL, Layer

__all__ = ["FINAL", "Backbone", "Layer"]
