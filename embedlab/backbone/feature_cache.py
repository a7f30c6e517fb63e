"""The feature cache: pooled hidden states of a frozen decoder, computed once per text and memory-mapped from disk.

A cache is a folder of shards. Its name is a hash of everything that determines the values; texts are looked up by their
hash. Runs, seeds and strategies share it: one process computes at a time, under a lock that the system releases when
the process ends, and any process may read. A process that is killed loses at most the shard it was computing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, repeat
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor

from embedlab.backbone.shard_index import ShardIndex
from embedlab.backbone.shards import (
    KEY_BYTES,
    SUFFIX,
    DamagedShard,
    Shard,
    in_memory,
    locked,
    open_shard,
    write_shard,
    write_whole,
)
from embedlab.resources import cache_root

__all__ = ["USES", "Cost", "FeatureCache"]

Computed = Tensor | Sequence[Tensor]  # for b texts
Compute = Callable[[Sequence[str]], Sequence[Computed]]
USES: Final = "uses.txt"  # a line each time: how many texts were asked for, how many of them were found
_FORMAT: Final = 2  # raise when shards are written otherwise; older ones are then never looked at
_SHARD_BYTES: Final = 64 * 2**20  # of features in one shard at most; they are in memory while it is written
_PATIENCE: Final = 1.0  # seconds of waiting for the lock, after which one looks what has come meanwhile
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cost:
    """The time that computing the features of some texts took, in any process.

    Attributes:
        seconds: Total.
        seconds_found: The part spent by earlier or other processes, whose features were found on disk.
        texts: Number of distinct texts.
        texts_found: Number of those found on disk.
    """

    seconds: float
    seconds_found: float
    texts: int
    texts_found: int


@final
class FeatureCache:
    """Features by text. The folder is created with the first shard.

    Args:
        identity: What determines the values: decoder hash, layers, pooling and so on; plain JSON types.
        shape: Shape of one text's features, (L, D); where they are ragged, of one token's.
        dtype: Data type they are stored in.
        root: Folder of all caches; the user's cache by default.
        ragged: Whether a text has features for each of its tokens, (T_i, L, D).
        decoder: What the decoder is called, for people; it determines nothing.
    """

    def __init__(
        self,
        identity: Mapping[str, Any],
        shape: Sequence[int],
        dtype: torch.dtype,
        root: Path | None = None,
        ragged: bool = False,
        decoder: str = "",
    ) -> None:
        described = {**identity, "shape": list(shape), "kept_as": str(dtype), "format": _FORMAT}
        described |= {"ragged": True} if ragged else {}
        self._identity = json.dumps(described, sort_keys=True)
        self.folder = (root or cache_root() / "features") / hashlib.sha256(self._identity.encode()).hexdigest()[:16]
        self.shape, self.dtype, self.ragged, self.decoder = tuple(shape), dtype, ragged, decoder
        self.row_bytes = math.prod(shape) * dtype.itemsize
        self._guard, self._warned = threading.RLock(), False
        self._index = ShardIndex(self.folder, self.row_bytes)
        self._known: dict[str, tuple[Shard, int]] = {}  # texts asked for so far, their rows found intact
        self._counted = 0  # of these, told in USES
        self._index.look()
        _touch(self.folder / "identity.json")

    def add(
        self,
        texts: Sequence[str],
        compute: Compute,
        block: int = 2048,
        progress: Callable[[int, int], None] = lambda done, total: None,
        beside: Sequence[FeatureCache] = (),
        charged: Sequence[float] = (),
    ) -> None:
        """Compute and store the features of texts that are missing, shortest first.

        While another process computes, this one waits and uses its results. If the disk is full or read-only, features
        are held in memory, with a warning.

        Args:
            texts: Any texts; repeats are computed once.
            compute: From b texts to their features for this cache, (b, L, D), or b of (T_i, L, D) where it is ragged, and
                for each of `beside`; or this one only.
            block: Texts per shard, fewer where they would take more than 64 MiB; a killed process loses at most one.
            progress: Called after each block with the number of texts done and the number that were missing.
            beside: Caches that are given what they lack of what is computed for this one.
            charged: Share of a computation's seconds for this cache and each of `beside`; all of them by default.
        """
        room = _SHARD_BYTES // (self.row_bytes + sum(own.row_bytes for own in beside))
        missing = sorted(self.missing(texts), key=lambda text: (len(text), text))
        total, waited, computed = len(missing), False, 0
        while missing:
            with locked(self.folder, _PATIENCE, self._warn) as held:
                missing = self.missing(missing)  # others may have computed some while this one waited
                if held and missing:
                    some = self._fitting(missing, block, room)
                    self._compute(missing[:some], compute, beside, charged or repeat(1.0))
                    missing, computed = missing[some:], computed + some
            if not held and not waited:
                waited = True
                log.info("another process is computing features in %s; waiting for it", self.folder)
            progress(total - len(missing), total)
        asked, self._counted = len(self._known) - self._counted, len(self._known)
        _tell_use(self.folder / USES, asked, asked - computed)

    def _fitting(self, texts: Sequence[str], block: int, room: int) -> int:
        """Return how many of texts, shortest first, make a shard of some rows; a text is taken for a token per 3 letters."""
        ends = accumulate(len(text) // 3 + 1 if self.ragged else 1 for text in texts[:block])
        return max(1, sum(end <= room for end in ends))

    def get(self, texts: Sequence[str]) -> Tensor:
        """Return the features of texts that were added before.

        Returns:
            A new tensor, (B, L, D), in `dtype`.

        Raises:
            KeyError: If a text was never added.
        """
        result = torch.empty(len(texts), *self.shape, dtype=self.dtype)
        # Row by row: one copy, and less than half the time of indexing a mapped tensor.
        flat = result.view(torch.uint8).view(len(texts), self.row_bytes).numpy()
        for i, text in enumerate(texts):
            shard, row = self._known[text]
            flat[i] = shard.rows[row]
        return result

    def get_each(self, texts: Sequence[str]) -> list[Tensor]:
        """Return the features of each text, which may not be written to, (T_i, L, D) where they are ragged.

        Raises:
            KeyError: If a text was never added.
        """
        rows = [shard.rows[row] for shard, row in map(self._known.__getitem__, texts)]
        return [torch.from_numpy(row).view(self.dtype).view(-1, *self.shape) for row in rows]

    @property
    def size(self) -> int:
        """Bytes on disk, of the shards this process has seen."""
        return self._index.size

    def missing(self, texts: Sequence[str]) -> list[str]:
        """Return the distinct texts without stored features; the folder is listed only if there seem to be any."""
        with self._guard:
            absent = self._absent(texts)
            if absent:
                self._index.look()
                absent = self._absent(absent)
            return absent

    def cost(self, texts: Sequence[str]) -> Cost:
        """Return what computing the features of texts took; each text counts its share of its shard's seconds.

        Raises:
            KeyError: If a text was never added.
        """
        shards = [self._known[text][0] for text in dict.fromkeys(texts)]
        found = [shard.share for shard in shards if not shard.own]
        return Cost(math.fsum(shard.share for shard in shards), math.fsum(found), len(shards), len(found))

    def _absent(self, texts: Sequence[str]) -> list[str]:
        absent = []
        for text in dict.fromkeys(text for text in texts if text not in self._known):
            if (place := self._index.find(_key(text))) is not None:
                self._known[text] = place
            else:
                absent.append(text)
        return absent

    def _compute(
        self,
        texts: Sequence[str],
        compute: Compute,
        beside: Sequence[FeatureCache],
        shares: Iterable[float],
    ) -> None:
        """Compute the features of b texts and keep them, here and in other caches."""
        begun = time.perf_counter()
        found = compute(texts)
        each = (time.perf_counter() - begun) / len(texts)
        for cache, own, share in zip((self, *beside), found, shares, strict=False):  # what failed was dropped
            keep = self._keep if cache is self else cache._take_over
            keep(texts, cache._placed(own), each * share)

    def _keep(self, texts: Sequence[str], features: Computed, share: float) -> None:
        """Write the features of b texts, each of which took some seconds, or hold them in memory if that fails."""
        shard = self._shard(texts, features, share)
        try:
            shard = self._written(features, shard)
        except (OSError, DamagedShard) as error:
            self._warn(error)
        with self._guard:
            self._index.take(shard)
            # Taken as intact: where a disk loses what was just written, comparing would compute it for ever.
            self._known.update((text, (shard, row)) for row, text in enumerate(texts))

    def _take_over(self, texts: Sequence[str], features: Computed, share: float) -> None:
        """Write what is lacking of features that were computed for another cache; where that fails, they are not kept."""
        # Not waiting for the lock: who holds it may be waiting for that of the other cache.
        with locked(self.folder, 0) as held:
            if lacking := self.missing(texts) if held else []:
                rows = {text: row for row, text in enumerate(texts)}
                chosen = [rows[text] for text in lacking]
                features = features[chosen] if isinstance(features, Tensor) else [features[row] for row in chosen]
                try:
                    self._index.take(self._written(features, self._shard(lacking, features, share)))
                except (OSError, DamagedShard) as error:
                    log.debug("features cannot be kept in %s: %s", self.folder, error)

    def _placed(self, features: Computed) -> Computed:
        if isinstance(features, Tensor):
            return features.to("cpu", self.dtype).contiguous()
        return [own.to("cpu", self.dtype).contiguous() for own in features]

    def _shard(self, texts: Sequence[str], features: Computed, share: float) -> Shard:
        shapes = [own.shape[int(self.ragged) :] for own in features]
        assert shapes == [self.shape] * len(texts), f"one row per text, got {shapes[:1]} of {len(shapes)}"
        return in_memory(features, [_key(text) for text in texts], share * len(texts))

    def _written(self, features: Computed, shard: Shard) -> Shard:
        """Write a shard and open it; the lock is held."""
        path = self.folder / f"{uuid.uuid4().hex}{SUFFIX}"
        self._index.seen.add(path.name)
        if not (self.folder / "identity.json").exists():
            write_whole(self.folder / "identity.json", f"{self._identity}\n".encode())
        write_shard(path, features, shard, self.decoder)
        return open_shard(path, self.row_bytes, own=True)

    def _warn(self, error: Exception) -> None:
        level, self._warned = logging.DEBUG if self._warned else logging.WARNING, True
        log.log(level, "features cannot be kept in %s, this process holds them in memory: %s", self.folder, error)


def _key(text: str) -> bytes:
    """Return a text's hash; lone surrogates, which UTF-8 cannot encode, are accepted."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:KEY_BYTES]


def _touch(path: Path) -> None:
    """Say when a cache was last used, where there is one; reading by memory map leaves no other trace."""
    with suppress(OSError):
        os.utime(path)


def _tell_use(path: Path, asked: int, found: int) -> None:
    """Tell beside the shards how many texts were asked for anew, and how many of them were found."""
    if asked:
        with suppress(OSError), path.open("a") as file:  # one line, which the system writes whole
            file.write(f"{asked} {found}\n")
