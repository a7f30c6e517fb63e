"""Shards of the feature cache: safetensors files, written whole or not at all, never changed, read by memory map.

    features   (n, *shape)   one row per text; in a ragged shard (T, *shape), a text's tokens one after the other
    offsets    (n + 1,)      of a ragged shard: where each text's tokens begin, and where the last one's end
    keys       (n, 16)       the texts' hashes
    checksums  (n,)          CRC-32 of each row
    seconds                  what computing the n rows took, in the header
    decoder                  what it is called, in the header, for people only
    index                    CRC-32 of header, keys, checksums and offsets, in the header, where it counts as zeros; the
                             shards of before there was one have none

A shard counts as damaged only if its header cannot be parsed, its size differs from the header, a row differs from its
checksum, or what is no feature from its own. An error of the operating system (too many open files, no permission) is
no sign of damage and is raised unchanged.
"""

from __future__ import annotations

import errno
import json
import math
import os
import struct
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

__all__ = ["KEY_BYTES", "SUFFIX", "DamagedShard", "Shard", "in_memory", "locked", "open_shard", "write_shard"]

KEY_BYTES: Final = 16
SUFFIX: Final = ".safetensors"
INDEXED: Final = ("checksums", "keys", "offsets")
UNSIGNED: Final = "00000000"
# No room, no permission, or a file where a folder should be.
_UNWRITABLE: Final = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}


class DamagedShard(Exception):  # noqa: N818  # named for what it tells
    """Raised for a file whose content differs from what was written."""


@dataclass(frozen=True, eq=False)
class Shard:
    """Features of n texts.

    Attributes:
        path: Its file, or None if it is held in memory.
        rows: The features of each text as bytes; NumPy has no bfloat16.
        keys: The texts' hashes, n.
        checksums: CRC-32 of each row, n.
        seconds: Time that computing them took.
        size: Bytes on disk.
        own: Whether this process computed it.
    """

    path: Path | None
    rows: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
    keys: Sequence[bytes]
    checksums: Sequence[int]
    seconds: float
    size: int
    own: bool

    def is_intact(self, row: int) -> bool:
        """Tell whether a row matches its checksum."""
        own: Any = self.rows[row]
        return zlib.crc32(own) == self.checksums[row]

    @property
    def share(self) -> float:
        """Seconds per text."""
        return self.seconds / len(self.keys)


class _Ragged(Sequence[NDArray[np.uint8]]):
    """Rows of different lengths in one piece of memory."""

    def __init__(self, data: NDArray[np.uint8], ends: Sequence[int]) -> None:
        self.data, self.ends = data, ends

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, row: Any) -> Any:
        return self.data[self.ends[row] : self.ends[row + 1]]


def in_memory(features: Tensor | Sequence[Tensor], keys: Sequence[bytes], seconds: float) -> Shard:
    """Hold features (n, *shape), or those of n texts (T_i, *shape) each, in memory as a shard."""
    if isinstance(features, Tensor):
        rows: Any = features.view(torch.uint8).view(len(keys), -1).numpy()
    else:
        whole = torch.cat([own.reshape(-1) for own in features]).view(torch.uint8).numpy()
        rows = _Ragged(whole, [0, *accumulate(own.nbytes for own in features)])
    return Shard(None, rows, keys, [zlib.crc32(rows[row]) for row in range(len(keys))], seconds, 0, own=True)


def open_shard(path: Path, row_bytes: int, own: bool = False) -> Shard:
    """Memory-map a shard; features are read from disk on access.

    Args:
        path: The file.
        row_bytes: Bytes of one text's features; of a ragged shard, of one token's.
        own: Whether this process computed it.

    Raises:
        DamagedShard: If its header cannot be parsed or does not fit the file. This finds truncated files; reading past
            the end of a mapped file would kill the process.
        OSError: If it cannot be read now; its content may be intact.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        begin = 8 + (struct.unpack("<Q", start)[0] if len(start) == 8 else size)
        header = file.read(begin - 8) if begin <= size else b""
    try:
        entries = json.loads(header)
        told = entries.pop("__metadata__")
        seconds = float(told["seconds"])
        spans = {name: slice(*(begin + int(end) for end in entry["data_offsets"])) for name, entry in entries.items()}
        lengths = {name: span.stop - span.start for name, span in spans.items()}
        count = lengths["keys"] // KEY_BYTES
        ragged = "offsets" in lengths
        rows = lengths["features"] // row_bytes if ragged else count
        expected = {"features": rows * row_bytes, "keys": count * KEY_BYTES, "checksums": count * 8}
        expected |= {"offsets": (count + 1) * 8} if ragged else {}
        if lengths != expected or count < 1 or size != max(span.stop for span in spans.values()):
            raise ValueError(f"its {size} bytes are not what its header says")
        if not 0 <= seconds < math.inf:
            raise ValueError(f"it took {seconds} seconds")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedShard(error) from error
    # Unlike `mmap`, this keeps no file open: there may be more shards than a process may have open files.
    try:
        data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    except RuntimeError as error:  # torch's word for what the system refused
        raise OSError(f"{path} cannot be mapped: {error}") from error
    parts = {name: data[spans[name]].numpy().tobytes() for name in INDEXED if name in spans}
    keys = parts["keys"]
    if [*told] != ["seconds"] and told.get("index") != _index(header.replace(*_signed(told)), parts.values()):
        raise DamagedShard("its keys, checksums or header are not what was written")
    features: Any = data[spans["features"]].numpy()
    if ragged:
        ends = np.frombuffer(parts["offsets"], "<i8").tolist()
        if ends[0] != 0 or ends[-1] != rows or any(after <= before for before, after in pairwise(ends)):
            raise DamagedShard("its offsets are not what its header says")
        features = _Ragged(features, [end * row_bytes for end in ends])
    return Shard(
        path,
        features if ragged else features.reshape(count, row_bytes),
        [keys[i : i + KEY_BYTES] for i in range(0, len(keys), KEY_BYTES)],
        np.frombuffer(parts["checksums"], "<i8").tolist(),
        seconds,
        size,
        own,
    )


def write_shard(path: Path, features: Tensor | Sequence[Tensor], shard: Shard, decoder: str = "") -> None:
    """Write a shard atomically.

    Args:
        path: The file, which does not exist.
        features: The features in their dtype, (n, *shape), or those of n texts, (T_i, *shape) each.
        shard: The same features as a shard in memory.
        decoder: What the decoder is called.

    Raises:
        OSError: If it cannot be written; nothing is left of it then.
    """
    keys = torch.frombuffer(bytearray(b"".join(shard.keys)), dtype=torch.uint8).view(-1, KEY_BYTES)
    tensors = {"keys": keys, "checksums": torch.tensor(shard.checksums)}
    if isinstance(features, Tensor):
        tensors["features"] = features
    else:
        tensors["features"] = torch.cat(list(features))
        tensors["offsets"] = torch.tensor([0, *accumulate(len(own) for own in features)])
    called = decoder.encode(errors="replace").decode()  # the path of a folder need not be Unicode
    told = {"seconds": repr(shard.seconds), "decoder": called, "index": UNSIGNED}
    # Serialised first: safetensors' own writing hides which error of the system stopped it.
    content = save(tensors, told)
    header = content[8 : 8 + struct.unpack("<Q", content[:8])[0]]
    index = _index(header, (tensors[name].numpy().tobytes() for name in INDEXED if name in tensors))
    signed, unsigned = _signed({"index": index})
    write_whole(path, content.replace(unsigned, signed, 1))


def _index(header: bytes, parts: Iterable[bytes]) -> str:
    """Return the checksum of an unsigned header, and of keys, checksums and offsets."""
    return f"{zlib.crc32(b''.join([header, *parts])):08x}"


def _signed(told: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """Return the index as it stands in a header, and what stands there while it is computed."""
    own, unsigned = (f'"index":"{value}"'.encode() for value in (told.get("index"), UNSIGNED))
    return own, unsigned


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: it gets its name only when all of it is on disk.

    Raises:
        OSError: If it cannot be written; nothing is left of it then.
    """
    unfinished = path.with_name(f"{uuid.uuid4().hex}.unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave a whole name on half a file
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def locked(folder: Path, patience: float, warn: Callable[[Exception], None] = lambda error: None) -> Iterator[bool]:
    """Make a folder and lock it; remove what a process that was killed left half written.

    Args:
        folder: Of shards.
        patience: Seconds to wait for another process.
        warn: Told why the folder cannot be written, where that is so.

    Yields:
        Whether it is locked, or cannot be written anyway.
    """
    lock = FileLock(folder / ".lock")
    held = True
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=patience)
        for remains in folder.glob("*.unfinished"):
            remains.unlink(missing_ok=True)
    except Timeout:
        held = False
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        warn(error)
    try:
        yield held
    finally:
        lock.release()
