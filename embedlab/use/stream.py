"""Compute a row of numbers for each of many texts, in blocks that are kept as they come: a killed command goes on.

Beside the file that is being made stand FILE.part, the rows so far, and FILE.progress.json, which says how many of them are
whole, and of what. They go when the file has its name. One command at a time makes a file: it holds a lock on FILE.part.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from embedlab import runs
from embedlab.errors import UserError
from embedlab.report.render import duration
from embedlab.runs.identity import content_hash

__all__ = ["Rows", "again", "alone", "compute_rows", "read_once"]

BLOCK: Final = 4096  # rows that a killed command loses at most
HEARTBEAT: Final = 5.0  # seconds between lines

Item = str | list[str]
Given = TypeVar("Given")


@dataclass(frozen=True)
class Rows:
    """What a file holds.

    Attributes:
        count: N, how many rows.
        sha256: Hash of their content.
    """

    count: int
    sha256: str


def read_once(items: Iterable[Item], argument: str) -> Rows:
    """Count and hash what will be computed, so that all of it is known to be sound before anything slow begins.

    Raises:
        UserError: If there is none, or one is an empty text.
    """
    count, digest = 0, hashlib.sha256()
    for item in items:
        if "" in ([item] if isinstance(item, str) else item):
            raise UserError(
                f"`{argument}` must hold no empty text, got one as text {count + 1}; leave it out, or write something."
            )
        _add(digest, item)
        count += 1
    if not count:
        raise UserError(f"`{argument}` must hold at least one text, got none; give another file.")
    return Rows(count, digest.hexdigest())


def again(items: Iterable[Given], rows: Rows, argument: str, text: Callable[[Given], Item]) -> Iterator[Given]:
    """Yield what was counted before, once more; `text` gives of each what was hashed.

    Raises:
        UserError: At the end, if it was other content.
    """
    count, digest = 0, hashlib.sha256()
    for item in items:
        _add(digest, text(item))
        count += 1
        if count <= rows.count:
            yield item
    if Rows(count, digest.hexdigest()) != rows:
        raise UserError(
            f"`{argument}` must stay as it is while it is read, but it was changed; give the same command again."
        )


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the making of a file; what stands beside it goes once the file is there.

    Raises:
        UserError: If another process is at it, the file has come meanwhile, or its disk cannot lock files.
    """
    part = _part(out)
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"`--out` must be made by one command at a time, but another is at {out}; wait for it."
            ) from None
        except OSError as error:
            _drop_empty(part)
            raise UserError(
                f"`--out` must be on a disk that can lock files, but that of {out} cannot ({error.strerror}); name another."
            ) from error
        try:
            if out.exists():
                raise UserError(f"`--out` must be a new file, but {out} is there by now; name another one.")
            yield
        except BaseException:
            _drop_empty(part)
            raise
        for own in (_note(out), part):
            own.unlink(missing_ok=True)


def compute_rows(
    out: Path,
    items: Iterator[Item],
    rows: Rows,
    compute: Callable[[Sequence[Item]], NDArray[np.float32]],
    identity: Any,
    block: int | None = None,
) -> Path:
    """Compute the row of every item, in their order.

    Args:
        out: The file that is to be made of the rows.
        items: What `rows` was counted from, from the first; see `again`.
        rows: What `read_once` returned.
        compute: From b items to their rows, (b, width).
        identity: What decides the numbers beside the items; rows of another are begun anew.
        block: Items computed at a time; None is BLOCK.

    Returns:
        A file that `numpy.load` reads, (N, width) float32, for the caller to rename or to read.

    Raises:
        OSError: If there is no room for the rows; no part of them is left.
        UserError: If the items are not those that were counted.
    """
    part, note, block = _part(out), _note(out), block or BLOCK
    wanted = content_hash([rows.count, rows.sha256, identity, block])
    table, done = _kept(part, note, wanted, rows)
    if done:
        _say(f"goes on behind {done:,} of {rows.count:,} rows in {part}")
    else:
        note.unlink(missing_ok=True)  # before any row of other content can stand there
    begun, told, first = time.monotonic(), time.monotonic(), done
    for chunk in _blocks(islice(items, done, None), block):
        found = compute(chunk)
        if table is None:
            table = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=(rows.count, found.shape[1]))
            _reserve(part)
        table[done : done + len(chunk)] = found
        table.flush()
        done += len(chunk)
        runs.write_json_atomic(note, {"of": wanted, "done": done})
        if time.monotonic() - told > HEARTBEAT and done < rows.count:
            told = time.monotonic()
            left = (told - begun) / (done - first) * (rows.count - done)
            _say(f"{done:,} of {rows.count:,} rows, about {duration(left)} left")
    return part


def _reserve(part: Path) -> None:
    """Take the room of a file on the disk; written through memory to a full disk, it would kill the process without a word.

    Raises:
        OSError: If there is no room; the file is gone by then.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        with part.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):  # the file system reserves nothing
            return
        part.unlink()
        raise OSError(error.errno, error.strerror, str(part)) from error


def _kept(part: Path, note: Path, wanted: str, rows: Rows) -> tuple[np.memmap[Any, Any] | None, int]:
    """Return the rows that an earlier command has kept of the same content, and how many are whole."""
    try:
        before = runs.read_json(note) or {}
        if before.get("of") != wanted:
            return None, 0
        table = np.lib.format.open_memmap(part, mode="r+")
        done = int(before["done"])
    except (UserError, OSError, ValueError, KeyError, TypeError):  # damaged: begun anew
        return None, 0
    fits = table.dtype == np.float32 and table.ndim == 2 and len(table) == rows.count
    return (table, done) if fits and 0 < done <= rows.count else (None, 0)


def _add(digest: Any, item: Item) -> None:
    digest.update(json.dumps(item).encode() + b"\n")


def _part(out: Path) -> Path:
    return out.with_name(f"{out.name}.part")


def _drop_empty(part: Path) -> None:
    """Delete a file of rows that holds none."""
    if part.exists() and not part.stat().st_size:
        part.unlink()


def _note(out: Path) -> Path:
    return out.with_name(f"{out.name}.progress.json")


def _blocks(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while block := list(islice(items, size)):
        yield block


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
