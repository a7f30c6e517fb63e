"""Cached features on disk: which caches there are, whether they are whole, what can go.

Nothing here needs torch, but for comparing rows with their checksums.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from embedlab.errors import UserError, did_you_mean
from embedlab.resources import cache_root

__all__ = ["Cache", "Contents", "InUse", "KeptStage", "caches", "chosen", "folder_of_caches", "kept_stages"]

SHARD: Final = ".safetensors"
DAMAGED: Final = ".damaged"
REMAINS: Final = (DAMAGED, ".unfinished")
IDENTITY: Final = "identity.json"
USES: Final = "uses.txt"
LOCK: Final = ".lock"
ITEM_BYTES: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


class InUse(Exception):  # noqa: N818  # named for what it tells
    """Raised where another process computes features into a cache just now."""


@final
@dataclass(frozen=True)
class Contents:
    """What a shard tells of itself.

    Attributes:
        texts: Number of texts.
        tokens: Number of tokens whose states are kept; 0 where those of a text are pooled.
        seconds: That computing them took.
        decoder: What the decoder is called; empty in shards of before that was told.
        row_bytes: Bytes of one text's features, or of one token's.
    """

    texts: int
    tokens: int
    seconds: float
    decoder: str
    row_bytes: int


@final
@dataclass(frozen=True)
class Cache:
    """A folder of features.

    Attributes:
        folder: The folder, named by a hash of what determines the values.
    """

    folder: Path

    @property
    def name(self) -> str:
        """Its hash."""
        return self.folder.name

    @property
    def identity(self) -> Mapping[str, Any]:
        """What determines the values; empty where that was lost, which harms no feature."""
        try:
            found = json.loads((self.folder / IDENTITY).read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def shards(self) -> list[Path]:
        """Files with features."""
        return self._files(SHARD)

    @property
    def remains(self) -> list[Path]:
        """Files that nothing reads any more: shards set aside as damaged, and what a killed process left."""
        return self._files(*REMAINS)

    @property
    def size(self) -> int:
        """Bytes on disk, remains included."""
        return _size([*self.shards, *self.remains])

    @property
    def last_used(self) -> float:
        """When a process last found features here or added some, in seconds since 1970."""
        times = [path.stat().st_mtime for path in (*self.shards, self.folder / IDENTITY) if path.exists()]
        return max(times, default=self.folder.stat().st_mtime)

    @property
    def uses(self) -> tuple[int, int]:
        """How many texts processes have asked for, and how many of them they found; told since there is such a count."""
        try:
            lines = (self.folder / USES).read_text().splitlines()
        except (OSError, ValueError):
            return 0, 0
        told = [
            tuple(map(int, own)) for line in lines if all(map(str.isdecimal, own := line.split())) and len(own) == 2
        ]
        return sum(asked for asked, _ in told), sum(found for _, found in told)

    def contents(self) -> tuple[list[Contents], int]:
        """Return what its shards hold, and how many of them do not tell."""
        told, unread = [], 0
        for path in self.shards:
            try:
                told.append(_contents(path))
            except (SafetensorError, LookupError, TypeError, ValueError, OSError):
                unread += 1
        return told, unread

    def verify(self) -> Iterator[tuple[Path, str | None]]:
        """Compare all that is kept with its checksums; set damaged shards aside, as the cache itself does.

        Yields:
            Each shard, and what is wrong with it, None where nothing is; and what tells their identity, if that is wrong.
        """
        from embedlab.backbone.shards import DamagedShard, open_shard  # torch

        for path in self.shards:
            fault: str | None = None
            try:
                shard = open_shard(path, _contents(path).row_bytes)
                wrong = sum(not shard.is_intact(row) for row in range(len(shard.keys)))
                fault = f"{wrong} of {len(shard.keys)} rows are not what was written" if wrong else None
            except OSError:  # safetensors knows one kind only
                if path.exists():
                    yield path, "it cannot be read; let this user read it"
                continue  # else deleted or set aside by another process just now
            except (SafetensorError, DamagedShard, LookupError, TypeError, ValueError) as error:
                fault = str(error) or type(error).__name__
            yield path, fault and fault + _set_aside(path)
        path = self.folder / IDENTITY
        with suppress(FileNotFoundError):
            content = path.read_bytes()
            if content[-1:] != b"\n" or hashlib.sha256(content[:-1]).hexdigest()[: len(self.name)] != self.name:
                yield path, f"the folder is named by the hash of another one{_set_aside(path)}"

    def delete(self, remains_only: bool, dry_run: bool) -> int:
        """Delete it, or what nothing reads any more.

        Args:
            remains_only: Whether to keep the features.
            dry_run: Whether to delete nothing and only look.

        Returns:
            Bytes that were freed, or would be.

        Raises:
            InUse: If another process computes features into it; nothing is deleted then.
        """
        files = self.remains if remains_only else [*self.remains, *self.shards]
        with _locked(self.folder):
            freed = _size(files)
            if dry_run:
                return freed
            for path in files:
                path.unlink(missing_ok=True)
            if not remains_only:
                for name in (IDENTITY, USES, LOCK):  # the lock last; a shard that is left is whole without the others
                    (self.folder / name).unlink(missing_ok=True)
                with suppress(OSError):  # something else lies in it
                    self.folder.rmdir()
        return freed

    def _files(self, *suffixes: str) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.suffix in suffixes)


@final
@dataclass(frozen=True)
class KeptStage:
    """What a pretraining stage has learned, kept for other runs.

    Attributes:
        folder: The folder, named by a hash of what decides it.
    """

    folder: Path

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return _size([own for own in self.folder.iterdir() if own.is_file()])

    @property
    def last_used(self) -> float:
        """When it was learned, in seconds since 1970."""
        times = [own.stat().st_mtime for own in self.folder.iterdir() if own.name != LOCK]
        return max(times, default=self.folder.stat().st_mtime)

    def delete(self, dry_run: bool) -> int:
        """Delete it, or only look; return the bytes that were freed, or would be.

        Raises:
            InUse: If a run trains it just now.
        """
        with _locked(self.folder):
            freed = self.size
            if not dry_run:
                shutil.rmtree(self.folder)
        return freed


def kept_stages() -> list[KeptStage]:
    """Return the pretraining stages that are kept, by name."""
    folder = cache_root() / "stages"
    return [KeptStage(own.parent) for own in sorted(folder.glob("*/weights.ckpt"))]


def folder_of_caches() -> Path:
    """Return where all caches lie."""
    return cache_root() / "features"


def caches(folder: Path) -> list[Cache]:
    """Return the caches in a folder, by name."""
    return [Cache(own) for own in sorted(folder.iterdir()) if own.is_dir()] if folder.is_dir() else []


def chosen(found: Sequence[Cache], names: Sequence[str]) -> list[Cache]:
    """Return the caches that are named by their hashes, or the beginnings of these; all where none is named.

    Raises:
        UserError: If a name fits none or several.
    """
    if not names:
        return list(found)
    every = [own.name for own in found]
    wanted = []
    for name in dict.fromkeys(names):
        fitting = [own for own in found if own.name.startswith(name)]
        if len(fitting) != 1:
            came = "there is none" if not fitting else f"{len(fitting)} begin so"
            near = did_you_mean(name, every, listing=False) if not fitting else "; write more of it"
            raise UserError(
                f"`HASH` must be the beginning of the name of one cache, got {name!r}, and {came}"
                f"{near or '; `embedlab features ls` lists them'}."
            )
        wanted += fitting
    return list(dict.fromkeys(wanted))


def _contents(path: Path) -> Contents:
    with safe_open(path, framework="numpy") as shard:
        told, features = shard.metadata(), shard.get_slice("features")
        rows, *shape = features.get_shape()
        return Contents(
            shard.get_slice("keys").get_shape()[0],
            rows if "offsets" in shard.keys() else 0,
            float(told["seconds"]),
            told.get("decoder", ""),
            math.prod(shape) * ITEM_BYTES[features.get_dtype()],
        )


def _set_aside(path: Path) -> str:
    """Rename a damaged file, and return the end of a sentence where that fails."""
    try:
        path.rename(path.with_suffix(DAMAGED))
    except OSError as error:
        return f"; it cannot be set aside ({error.strerror})"
    return ""


def _size(files: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in files if path.exists())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InUse(folder.name) from error
    try:
        yield
    finally:
        lock.release()
