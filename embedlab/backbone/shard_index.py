"""The shards of one folder, by the hashes of the texts whose features they hold."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import final

from embedlab.backbone.shards import SUFFIX, DamagedShard, Shard, open_shard

__all__ = ["ShardIndex"]

log = logging.getLogger("embedlab.backbone.feature_cache")


@final
class ShardIndex:
    """Finds the row of a text; a shard with a damaged row is renamed and no longer used.

    Attributes:
        size: Bytes on disk, of the shards that were seen.

    Args:
        folder: Of shards.
        row_bytes: As for `open_shard`.
    """

    def __init__(self, folder: Path, row_bytes: int) -> None:
        self.folder, self.row_bytes, self.size = folder, row_bytes, 0
        self.seen: set[str] = set()
        self._rows: dict[bytes, tuple[Shard, int]] = {}

    def find(self, key: bytes) -> tuple[Shard, int] | None:
        """Return the shard and row of a text's hash, compared with its checksum; None where there is none."""
        place = self._rows.get(key)
        return place if place is not None and self._is_intact(*place) else None

    def look(self) -> None:
        """Open the shards that were written since the last call."""
        try:
            names = sorted(name for name in os.listdir(self.folder) if name.endswith(SUFFIX))
        except (FileNotFoundError, NotADirectoryError):
            return  # nothing was ever kept
        for name in names:
            if name in self.seen:
                continue
            try:
                self.take(open_shard(self.folder / name, self.row_bytes))
            except FileNotFoundError:
                continue  # set aside by another process just now
            except DamagedShard as error:
                self._set_aside(self.folder / name, error)
            self.seen.add(name)

    def take(self, shard: Shard) -> None:
        """Add a shard; of a text that two of them hold, the first counts."""
        self.size += shard.size
        for row, key in enumerate(shard.keys):
            self._rows.setdefault(key, (shard, row))

    def _is_intact(self, shard: Shard, row: int) -> bool:
        if shard.is_intact(row):
            return True
        assert shard.path is not None, "memory keeps what it was given"
        self._set_aside(shard.path, f"row {row} is not what was written")
        self._rows = {key: place for key, place in self._rows.items() if place[0] is not shard}
        self.size -= shard.size
        return False

    def _set_aside(self, path: Path, reason: object) -> None:
        aside = path.with_suffix(".damaged")
        log.warning("damaged features are set aside as %s and computed again where needed: %s", aside, reason)
        with suppress(OSError):  # another process was first, or this one may not write; no row of it is used anyway
            path.rename(aside)
