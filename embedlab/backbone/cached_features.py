"""Features of a frozen decoder: computed once for each text, kept on disk, charged to every run that uses them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch

from embedlab.backbone import FINAL, Backbone, Layer
from embedlab.backbone.feature_cache import Cost, FeatureCache
from embedlab.errors import UserError

__all__ = ["CachedFeatures"]


class CachedFeatures(ABC):
    """Features by text.

    Attributes:
        kept: Whether they are kept on disk. Texts of a user who embeds a corpus are not: they come once, and are many.
        ragged: Whether a text has features for each of its tokens.
        option: The argument of a strategy that names the layers.

    Args:
        backbone: The decoder, loaded before a text is asked for.
        kept_as: Data type on disk; None is what the decoder computes in.
    """

    ragged: bool = False
    option: str = "layer"

    def __init__(self, backbone: Backbone, kept_as: torch.dtype | None = None) -> None:
        self.backbone, self.kept_as = backbone, kept_as
        self.kept = True
        self._used: dict[str, None] = {}
        self._store: FeatureCache | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open cache behind: a copy, or another process, opens its own."""
        return {**self.__dict__, "_store": None}

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """All that decides the features of a text as it is read."""

    @property
    @abstractmethod
    def layers(self) -> Sequence[Layer]:
        """Layers whose states are read, L of them."""

    @property
    @abstractmethod
    def beginning(self) -> str:
        """What stands before each text, in words: its tokens, or "none"."""

    @abstractmethod
    def as_read(self, text: str) -> str:
        """Return a text as the decoder reads it."""

    @abstractmethod
    def _compute(self, texts: Sequence[str]) -> Sequence[Any]:
        """Compute the features of B texts as they are read: a list with those for this cache, and others."""

    @property
    def wish(self) -> tuple[str, dict[str, Any]] | None:
        """For `READ_TOO`: a hash of all that makes a pass over texts, and what is wanted of it; None if not shared."""
        return None

    @property
    def store(self) -> FeatureCache:
        """Where they are kept."""
        if self._store is None:
            shape, dtype = (len(self.layers), self.backbone.width), self.kept_as or self.backbone.dtype
            self._store = FeatureCache(self.identity, shape, dtype, ragged=self.ragged, decoder=self.backbone.name)
        return self._store

    def check_layers(self) -> None:
        """Refuse layers that the decoder lacks, by its configuration.

        Raises:
            UserError: If there are any.
        """
        blocks = self.backbone.num_layers
        for layer in self.layers:
            if layer != FINAL and not 0 <= int(layer) <= blocks:
                raise UserError(
                    f"`{self.option}` must be 0 to {blocks} or {FINAL!r} for {self.backbone.name}, a decoder of {blocks} "
                    f"blocks, got {layer}; name one of them."
                )

    def precompute(self, texts: Sequence[str], report: Callable[[int, int], None]) -> None:
        """Compute what is not on disk yet, telling `report` how many of how many are done."""
        self._add(self._noted(texts), report)

    def cost(self, texts: Sequence[str] | None = None) -> Cost:
        """Return what reading texts took, whether this process read them or found them on disk.

        Args:
            texts: Texts that were added; None is all that were added or fetched so far.

        Returns:
            Seconds of reading, those that others spent included, so that a run that finds its features is charged
            what they cost. A run that was killed and resumed is charged the same. Of a pass that read a text for others
            too, it is charged for the blocks that its own layers need.

        Raises:
            KeyError: If a text was never added.
        """
        used = list(self._used) if texts is None else [*map(self.as_read, texts)]
        return self.store.cost(used) if used else Cost(0.0, 0.0, 0, 0)

    def _found(self, texts: Sequence[str]) -> list[str]:
        """Return texts as they are read, once their features are in the store."""
        read = self._noted(texts)
        if self.store.missing(read):
            self._add(read)
        return read

    def _noted(self, texts: Sequence[str]) -> list[str]:
        """Return texts as they are read, and note that they were used."""
        read = [*map(self.as_read, texts)]
        self._used.update(dict.fromkeys(read))
        return read

    def _add(self, texts: Sequence[str], report: Callable[[int, int], None] = lambda done, total: None) -> None:
        self.store.add(texts, self._compute, progress=report)

    def _check_dtype(self) -> None:
        """Refuse a decoder that something else has converted, as other runs would find what it computed."""
        dtype = next(self.backbone.parameters()).dtype
        if dtype != self.backbone.dtype:
            raise UserError(
                f"`backbone.dtype` must be what the decoder computes in, got {self.backbone.dtype} for one that was converted to "
                f"{dtype}; give `dtype` to the backbone, and leave the trainer's precision at 32-true."
            )
