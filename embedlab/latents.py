"""Latents of a frozen decoder: the state of every block at one token, read once per text and kept on disk."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Literal, final

import torch
from torch import Tensor

from embedlab.backbone import Backbone
from embedlab.features import FeatureStore
from embedlab.pooling import Pooling
from embedlab.tokens import Tokens

__all__ = ["FinalPunctuation", "Latents", "punctuated"]

FinalPunctuation = Literal["keep", "strip", "append"]


def punctuated(text: str, final_punctuation: FinalPunctuation) -> str:
    """Keep, strip or append a text's final punctuation.

    >>> punctuated("Birds sing.", "strip"), punctuated("Birds sing", "append")
    ('Birds sing', 'Birds sing.')
    """
    bare = text.rstrip()
    if final_punctuation == "strip":
        return bare.rstrip(".!?").rstrip() or bare
    return f"{bare}." if final_punctuation == "append" and not bare.endswith((".", "!", "?")) else text


@final
class Latents:
    """Latents by text.

    Args:
        backbone: The decoder; loaded only when a text is not on disk yet.
        pooling: Which token's state is read, or which mean of them.
        final_punctuation: Whether a final . ! or ? stays, is taken off, or is added where missing.
        bos: Whether a begin-of-text token is put first. It is seen by the text, but never pooled: its state is huge
            in the middle blocks (Xiao et al., 2023, arXiv:2309.17453), so that a mean with it tells mostly how long a
            text is.
    """

    def __init__(self, backbone: Backbone, pooling: Pooling, final_punctuation: FinalPunctuation, bos: bool) -> None:
        self.backbone, self.pooling, self.final_punctuation, self.bos = backbone, pooling, final_punctuation, bos
        self._store: FeatureStore | None = None

    @property
    def store(self) -> FeatureStore:
        """Where they are kept; final punctuation needs no place in its name, as the text itself differs."""
        if self._store is None:
            identity = {
                "decoder": self.backbone.sha256,
                "computed_in": str(self.backbone.dtype),
                "window": self.backbone.window,
                "pooling": f"{self.pooling.__module__}.{self.pooling.__qualname__}",
                "pooling_code": _source(self.pooling),
                "bos": "seen, not pooled" if self.bos else "none",
            }
            self._store = FeatureStore(identity, self.backbone.dtype)
        return self._store

    def add(self, texts: Sequence[str], report: Callable[[int, int], None]) -> None:
        """Read the texts that are not on disk yet, telling `report` how many of how many are done."""
        self.store.add([punctuated(text, self.final_punctuation) for text in texts], self._read, progress=report)

    def get(self, texts: Sequence[str]) -> Tensor:
        """Return the latents of texts, (B, L, D), as they are kept."""
        texts = [punctuated(text, self.final_punctuation) for text in texts]
        if self.store.missing(texts):
            self.store.add(texts, self._read)
        return self.store.get(texts)

    def _read(self, texts: Sequence[str]) -> Tensor:
        blocks = range(1, self.backbone.num_layers + 1)
        prefix = self.backbone.bos if self.bos else ()

        def pool(states: Tensor, tokens: Tokens) -> Tensor:
            own = tokens.positions >= len(prefix)
            lengths = tuple(length - len(prefix) for length in tokens.lengths)
            return self.pooling(states[own], Tokens(tokens.ids[own], lengths, tokens.content[own]))

        with torch.no_grad():
            return self.backbone.read(texts, pool, blocks, prefix=prefix)


def _source(function: Callable[..., object]) -> str:
    """Return a function's code, so that one edited under its old name is another one."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return ""
