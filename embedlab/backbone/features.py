"""Features of a frozen decoder: pooled states of chosen layers, computed once per text and kept on disk.

Runs of a study read texts for each other: where two of them want different poolings or layers of the same decoder and
the same tokens, whichever comes first computes the features of both in one pass (`Features.wish`).
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import operator
import os
import shutil
import uuid
import weakref
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, final

import torch
from torch import Tensor

from embedlab.backbone import FINAL, Backbone, Layer
from embedlab.backbone.cached_features import CachedFeatures
from embedlab.backbone.feature_cache import FeatureCache
from embedlab.backbone.reader import Site
from embedlab.errors import UserError
from embedlab.packing import PackedBatch
from embedlab.pooling import Pooling
from embedlab.resources import READ_TOO
from embedlab.source_hash import code_of

__all__ = ["Features", "FinalPunctuation", "punctuated"]

_READING: Final = 1  # raise when the same decoder and pooling would give other numbers: packing, tokens, states
log = logging.getLogger(__name__)

FinalPunctuation = Literal["keep", "strip", "append"]


def punctuated(text: str, final_punctuation: FinalPunctuation) -> str:
    """Keep, strip or append a text's final punctuation.

    >>> punctuated("Birds sing.", "strip"), punctuated("Birds sing", "append"), punctuated("Birds sing. ", "append")
    ('Birds sing', 'Birds sing.', 'Birds sing.')
    """
    bare = text.rstrip()
    if final_punctuation == "strip":
        return bare.rstrip(" \t\r\n.!?") or bare
    if final_punctuation == "append":
        return bare if bare.endswith((".", "!", "?")) else f"{bare}."
    return text


@final
class Features(CachedFeatures):
    """Pooled states of chosen layers, by text.

    Args:
        backbone: The decoder, loaded before a text is asked for.
        pooling: Which token's state is read, or which mean of them. Features are shared between runs only where it is
            a function of a module, known by its code; others are read anew by every run.
        final_punctuation: Whether a final . ! or ? stays, is taken off, or is added where missing.
        bos: Whether a begin-of-text token is put first although the tokenizer would put none.
        layers: Whose states are pooled; None is every block.
        pool_begin: Whether the begin-of-text token is pooled like any other. Otherwise it is only seen by the text: its
            state is huge in the middle blocks (Xiao et al., 2023, arXiv:2309.17453), so that a mean with it tells
            mostly how long a text is.
        kept_as: Data type on disk; None is what the decoder computes in.
        site: What the state of a block is: `residual`, the stream behind it, or `mlp`, what its MLP adds to that.
    """

    def __init__(
        self,
        backbone: Backbone,
        pooling: Pooling,
        final_punctuation: FinalPunctuation = "keep",
        bos: bool = False,
        layers: Sequence[Layer] | None = None,
        pool_begin: bool = False,
        kept_as: torch.dtype | None = None,
        site: Site = "residual",
    ) -> None:
        super().__init__(backbone, kept_as)
        if site != "residual" and layers is not None and {0, FINAL} & {*layers}:
            raise UserError(
                f"`blocks` must be blocks where `site` is {site}, got {list(layers)}; leave 0 and {FINAL!r} out."
            )
        self.site = site
        self.pooling, self.final_punctuation, self.bos = pooling, final_punctuation, bos
        self.pool_begin, self._layers = pool_begin, layers
        self._code = code_of(pooling)  # now, as the file may be edited before the first text is read

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that decides the features of a text; final punctuation needs no place, as the text itself differs."""
        blocks = self.backbone.num_layers
        return {
            "reading": _READING,
            "decoder": self.backbone.files.sha256,
            "computed_in": str(self.backbone.dtype),
            "window": self.backbone.window,
            "states": f"output of blocks 1 to {blocks}" if self._layers is None else list(self._layers),
            "pooling": self._code or f"{self.pooling!r}, process {uuid.uuid4().hex}",
            f"begin, {'' if self.pool_begin and self._begin else 'not '}pooled": list(self._begin),
            **({} if self.site == "residual" else {"site": self.site}),
        }

    @property
    def store(self) -> FeatureCache:
        """Where they are kept."""
        opened, store = self._store is None, super().store
        if opened and self._code is None:
            log.warning(
                "features are not shared with other runs, as the code of `pooling` %r cannot be told; make it a "
                "function (`def`) of a module of its own to share them",
                self.pooling,
            )
            weakref.finalize(store, _discard, store.folder, os.getpid())
        return store

    def as_read(self, text: str) -> str:
        """Return a text with its final punctuation as asked for."""
        return punctuated(text, self.final_punctuation)

    @property
    def layers(self) -> Sequence[Layer]:
        """Layers whose states are pooled, L of them."""
        return range(1, self.backbone.num_layers + 1) if self._layers is None else self._layers

    @property
    def wish(self) -> tuple[str, dict[str, Any]] | None:
        """For `READ_TOO`: a hash of all that makes a pass over texts, and what is wanted of it; None if not shared."""
        if self._code is None:
            return None
        backbone = self.backbone
        read = [backbone.files.sha256, str(backbone.dtype), backbone.window, list(self._begin), self.final_punctuation]
        read += [] if self.site == "residual" else [self.site]
        wanted = {
            "pooling": [self.pooling.__module__, self.pooling.__qualname__],
            "layers": None if self._layers is None else list(self._layers),
            "pool_begin": self.pool_begin,
            "kept_as": None if self.kept_as is None else str(self.kept_as).removeprefix("torch."),
        }
        return hashlib.sha256(json.dumps(read).encode()).hexdigest()[:16], wanted

    def get(self, texts: Sequence[str]) -> Tensor:
        """Return the features of texts, (B, L, D), as they are kept."""
        if not self.kept:
            return self._read([*map(self.as_read, texts)], [self])[0].to(self.kept_as or self.backbone.dtype)
        return self.store.get(self._found(texts))

    def _add(self, texts: Sequence[str], report: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Compute what is not on disk yet, and what others lack of it; each is charged by the blocks that it wants run."""
        depths = [_depth(own) for own in (self, *self._others)]
        shares = [depth / max(depths) for depth in depths]
        self.store.add(texts, self._compute, 2048, report, [own.store for own in self._others], shares)

    def beside(self, others: Sequence[Features]) -> None:
        """Compute what others want of the same decoder and tokens in the passes of this one, so that one serves all."""
        self._others = [*self._others, *others]

    @property
    def _begin(self) -> tuple[int, ...]:
        """Ids that stand before each text."""
        return self.backbone.tokenization.begin or (self.backbone.tokenization.bos if self.bos else ())

    @property
    def beginning(self) -> str:
        """What stands before each text, in words: its tokens, or "none"."""
        return self.backbone.tokenization.words(self._begin)

    @cached_property
    def _others(self) -> list[Features]:
        """What other runs of the study want of the same pass."""
        if self.wish is None:
            return []
        key, own = self.wish
        found = []
        for wanted in json.loads(os.environ.get(READ_TOO, "{}")).get(key, []):
            try:
                found += [self._other(**wanted)] if wanted != own else []
            except Exception as error:  # of code of another run, which may have been edited since
                log.warning("what another run of the study wants is not read for it, as it cannot be set up: %s", error)
        return found

    def _other(self, pooling: Sequence[str], kept_as: str | None, **options: Any) -> Features:
        function = operator.attrgetter(pooling[1])(importlib.import_module(pooling[0]))
        kept = None if kept_as is None else getattr(torch, kept_as)
        return Features(
            self.backbone, function, self.final_punctuation, self.bos, kept_as=kept, site=self.site, **options
        )

    def _compute(self, texts: Sequence[str]) -> list[Tensor]:
        """Compute the features of B texts, (B, L, D), and what others want of the same pass, unless that fails."""
        if self._others:
            try:
                return self._read(texts, [self, *self._others])
            except Exception as error:  # of a pooling of another run's, or of this one's, which is then raised below
                log.warning("what other runs of the study want is no longer read for them, as it failed: %s", error)
                self._others = []
        return self._read(texts, [self])

    def _read(self, texts: Sequence[str], every: Sequence[Features]) -> list[Tensor]:
        """Compute the features of B texts, (B, L, D), for each of several."""
        prefix = self._begin
        self._check_dtype()
        wanted = list(dict.fromkeys((layer, own.pooling, own.pool_begin) for own in every for layer in own.layers))

        def but_begin(pooling: Pooling) -> Pooling:
            def pool(states: Tensor, batch: PackedBatch) -> Tensor:
                without, left = batch.without_first(len(prefix))
                return pooling(states[left], without)

            return pool

        poolings = [pooling if begin or not prefix else but_begin(pooling) for _, pooling, begin in wanted]
        # Kept for runs of any precision, so that what this trainer computes in must not show.
        exact = torch.autocast(self.backbone.device.type, enabled=False)
        with torch.no_grad(), exact, self.backbone.reader.at(self.site):
            pooled = self.backbone.pool(texts, poolings, [layer for layer, *_ in wanted], prefix=prefix)
        places = {own: place for place, own in enumerate(wanted)}
        return [pooled[:, [places[layer, own.pooling, own.pool_begin] for layer in own.layers]] for own in every]


def _depth(own: Features) -> int:
    """Return how many blocks must be run for features, the embedding and the final norm counted as one each."""
    blocks = own.backbone.num_layers
    return 1 + max(blocks + 1 if layer == FINAL else int(layer) for layer in own.layers)


def _discard(folder: Path, process: int) -> None:
    """Delete a folder when what it belongs to goes, but not from a forked child."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
