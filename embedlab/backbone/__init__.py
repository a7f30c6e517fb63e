"""The decoder: loading, checks of how it may be read, packing, hidden states, log-probabilities, tuning."""

from embedlab.backbone.backbone import Backbone
from embedlab.backbone.hooks import FINAL, Layer

__all__ = ["FINAL", "Backbone", "Layer"]
