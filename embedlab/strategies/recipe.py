"""What a vector is made of, in parts that other libraries have too; an export writes these."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from embedlab.backbone import FINAL, Layer
from embedlab.pooling import Pooling

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """A decoder's states, pooled, and mapped or not.

    Attributes:
        pooling: From token states to one vector.
        layer: Whose states are pooled.
        weight: Matrix that the pooled vector is multiplied by, (E, D); None is the identity.
        bias: Vector that is added then, (E,); None is none.
        around: What else is put around a text, in words; None is nothing.
    """

    pooling: Pooling
    layer: Layer = FINAL
    weight: Tensor | None = None
    bias: Tensor | None = None
    around: str | None = None
