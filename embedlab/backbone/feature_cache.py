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
from itertools import repeat
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor

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

__all__ = ["Cost", "FeatureCache"]

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
        shape: Shape of one text's features, (L, D).
        dtype: Data type they are stored in.
        root: Folder of all caches; the user's cache by default.
    """

    def __init__(
        self, identity: Mapping[str, Any], shape: Sequence[int], dtype: torch.dtype, root: Path | None = None
    ) -> None:
        described = {**identity, "shape": list(shape), "kept_as": str(dtype), "format": _FORMAT}
        self._identity = json.dumps(described, sort_keys=True)
        self.folder = (root or cache_root() / "features") / hashlib.sha256(self._identity.encode()).hexdigest()[:16]
        self.shape, self.dtype = tuple(shape), dtype
        self.row_bytes = math.prod(shape) * dtype.itemsize
        self.size, self._warned = 0, False  # bytes on disk, of the shards this process has seen
        self._guard, self._seen = threading.RLock(), set[str]()
        self._index: dict[bytes, tuple[Shard, int]] = {}
        self._known: dict[str, tuple[Shard, int]] = {}  # texts asked for so far, their rows found intact
        self._look()
        _touch(self.folder / "identity.json")

    def add(
        self,
        texts: Sequence[str],
        compute: Callable[[Sequence[str]], Sequence[Tensor]],
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
            compute: From b texts to their features for this cache, (b, L, D), and for each of `beside`; or this one only.
            block: Texts per shard, fewer where they would take more than 64 MiB; a killed process loses at most one.
            progress: Called after each block with the number of texts done and the number that were missing.
            beside: Caches that are given what they lack of what is computed for this one.
            charged: Share of a computation's seconds for this cache and each of `beside`; all of them by default.
        """
        block = max(1, min(block, _SHARD_BYTES // (self.row_bytes + sum(own.row_bytes for own in beside))))
        missing = sorted(self.missing(texts), key=lambda text: (len(text), text))
        total, waited = len(missing), False
        while missing:
            with locked(self.folder, _PATIENCE, self._warn) as held:
                missing = self.missing(missing)  # others may have computed some while this one waited
                if held and missing:
                    self._compute(missing[:block], compute, beside, charged or repeat(1.0))
                    missing = missing[block:]
            if not held and not waited:
                waited = True
                log.info("another process is computing features in %s; waiting for it", self.folder)
            progress(total - len(missing), total)

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

    def missing(self, texts: Sequence[str]) -> list[str]:
        """Return the distinct texts without stored features; the folder is listed only if there seem to be any."""
        with self._guard:
            absent = self._absent(texts)
            if absent:
                self._look()
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
            place = self._index.get(_key(text))
            if place is not None and self._intact(*place):
                self._known[text] = place
            else:
                absent.append(text)
        return absent

    def _intact(self, shard: Shard, row: int) -> bool:
        """Compare a row with its checksum; a shard with a damaged row is renamed and no longer used."""
        if shard.is_intact(row):
            return True
        assert shard.path is not None, "memory keeps what it was given"
        self._set_aside(shard.path, f"row {row} is not what was written")
        self._index = {key: place for key, place in self._index.items() if place[0] is not shard}
        self.size -= shard.size
        return False

    def _set_aside(self, path: Path, reason: object) -> None:
        aside = path.with_suffix(".damaged")
        log.warning("damaged features are set aside as %s and computed again where needed: %s", aside, reason)
        with suppress(OSError):  # another process was first, or this one may not write; no row of it is used anyway
            path.rename(aside)

    def _look(self) -> None:
        """Open the shards that were written since the last call."""
        try:
            names = sorted(name for name in os.listdir(self.folder) if name.endswith(SUFFIX))
        except (FileNotFoundError, NotADirectoryError):
            return  # nothing was ever kept
        for name in names:
            if name in self._seen:
                continue
            try:
                self._take(open_shard(self.folder / name, self.row_bytes))
            except FileNotFoundError:
                continue  # set aside by another process just now
            except DamagedShard as error:
                self._set_aside(self.folder / name, error)
            self._seen.add(name)

    def _take(self, shard: Shard) -> None:
        self.size += shard.size
        for row, key in enumerate(shard.keys):
            self._index.setdefault(key, (shard, row))

    def _compute(
        self,
        texts: Sequence[str],
        compute: Callable[[Sequence[str]], Sequence[Tensor]],
        beside: Sequence[FeatureCache],
        shares: Iterable[float],
    ) -> None:
        """Compute the features of b texts and keep them, here and in other caches."""
        begun = time.perf_counter()
        found = compute(texts)
        each = (time.perf_counter() - begun) / len(texts)
        for cache, own, share in zip((self, *beside), found, shares, strict=False):  # what failed was dropped
            keep = self._keep if cache is self else cache._take_over
            keep(texts, own.to("cpu", cache.dtype).contiguous(), each * share)

    def _keep(self, texts: Sequence[str], features: Tensor, share: float) -> None:
        """Write the features of b texts, each of which took some seconds, or hold them in memory if that fails."""
        shard = self._shard(texts, features, share)
        try:
            shard = self._written(features, shard)
        except (OSError, DamagedShard) as error:
            self._warn(error)
        with self._guard:
            self._take(shard)
            # Taken as intact: where a disk loses what was just written, comparing would compute it for ever.
            self._known.update((text, (shard, row)) for row, text in enumerate(texts))

    def _take_over(self, texts: Sequence[str], features: Tensor, share: float) -> None:
        """Write what is lacking of features that were computed for another cache; where that fails, they are not kept."""
        # Not waiting for the lock: who holds it may be waiting for that of the other cache.
        with locked(self.folder, 0) as held:
            if lacking := self.missing(texts) if held else []:
                rows = {text: row for row, text in enumerate(texts)}
                features = features[[rows[text] for text in lacking]]
                try:
                    self._take(self._written(features, self._shard(lacking, features, share)))
                except (OSError, DamagedShard) as error:
                    log.debug("features cannot be kept in %s: %s", self.folder, error)

    def _shard(self, texts: Sequence[str], features: Tensor, share: float) -> Shard:
        assert features.shape == (len(texts), *self.shape), f"one row per text, got {tuple(features.shape)}"
        return in_memory(features, [_key(text) for text in texts], share * len(texts))

    def _written(self, features: Tensor, shard: Shard) -> Shard:
        """Write a shard and open it; the lock is held."""
        path = self.folder / f"{uuid.uuid4().hex}{SUFFIX}"
        self._seen.add(path.name)
        if not (self.folder / "identity.json").exists():
            write_whole(self.folder / "identity.json", f"{self._identity}\n".encode())
        write_shard(path, features, shard)
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
