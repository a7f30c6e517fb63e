"""Latents of a frozen decoder, computed once per text and kept on disk.

A store is a folder of safetensors shards under the cache. Its name is a hash of everything that decides the
numbers in it; a text is known by its own hash. A shard is written whole or not at all, and one that cannot be
read is dropped with a warning and computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from embedlab.embedded import cache_root

__all__ = ["FeatureStore"]

log = logging.getLogger(__name__)


class FeatureStore:
    """Latents by text.

    Args:
        identity: What decides the numbers: decoder hash, layers, pooling and so on; plain JSON types.
        dtype: What they are kept in.
        root: Folder of all stores; the cache by default.
    """

    def __init__(self, identity: Mapping[str, Any], dtype: torch.dtype, root: Path | None = None) -> None:
        described = json.dumps({**identity, "kept_as": str(dtype)}, sort_keys=True)
        self.folder = (root or cache_root() / "features") / hashlib.sha256(described.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "identity.json").write_text(described + "\n")
        self.dtype = dtype
        self.computed = 0
        self._read: set[Path] = set()
        self._place: dict[str, int] = {}
        self._rows: Tensor | None = None

    def add(
        self,
        texts: Sequence[str],
        compute: Callable[[Sequence[str]], Tensor],
        block: int = 2048,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Compute and keep the latents of texts that are not there yet, shortest first.

        Args:
            texts: Any texts; repeats are computed once.
            compute: From b texts to their latents, (b, L, D).
            block: Texts per shard; what a killed process loses at most.
            progress: Told after each block how many of how many missing texts are done.
        """
        self._load()
        missing = sorted({text for text in texts if _key(text) not in self._place}, key=lambda text: (len(text), text))
        for start in range(0, len(missing), block):
            part = missing[start : start + block]
            latents = compute(part).to("cpu", self.dtype).contiguous()
            name = self.folder / f"{uuid.uuid4().hex}.safetensors"
            unfinished = name.with_suffix(".unfinished")
            save_file({"latents": latents}, unfinished, {"texts": json.dumps([_key(text) for text in part])})
            os.replace(unfinished, name)
            self.computed += len(part)
            progress(start + len(part), len(missing))
        if missing:
            self._load()

    def get(self, texts: Sequence[str]) -> Tensor:
        """Return the latents of texts that were added before, (B, L, D), in `dtype`.

        Raises:
            KeyError: If a text was never added.
        """
        assert self._rows is not None, "`add` comes first"
        return self._rows[[self._place[_key(text)] for text in texts]]

    def missing(self, texts: Sequence[str]) -> list[str]:
        """Return the texts that are not there."""
        self._load()
        return [text for text in texts if _key(text) not in self._place]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))

    def _load(self) -> None:
        """Read shards that were not read yet, those of other processes included."""
        parts = [] if self._rows is None else [self._rows]
        count = sum(len(part) for part in parts)
        for path in sorted(self.folder.glob("*.safetensors")):
            if path in self._read:
                continue
            try:
                with safe_open(path, framework="pt") as shard:
                    keys = json.loads(shard.metadata()["texts"])
                    parts.append(shard.get_tensor("latents"))
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                log.warning("dropping unreadable latents %s, they will be computed again (%s)", path.name, error)
                path.unlink(missing_ok=True)
                continue
            self._read.add(path)
            self._place.update((key, count + i) for i, key in enumerate(keys) if key not in self._place)
            count += len(keys)
        if parts and (self._rows is None or count > len(self._rows)):
            self._rows = torch.cat(parts)


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
