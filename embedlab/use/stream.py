"""Compute a row of numbers for each of many texts, in blocks that are kept as they come: a killed command goes on.

Beside the file that is being made stand FILE.part, the rows so far, and FILE.progress.json, which says how many of them are
whole, and of what. They go when the file has its name.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedlab import runs
from embedlab.errors import UserError
from embedlab.report.render import duration
from embedlab.runs.identity import content_hash

__all__ = ["Rows", "compute_rows", "forget", "read_once"]

BLOCK: Final = 4096  # rows that a killed command loses at most
HEARTBEAT: Final = 15.0  # seconds between lines

Item = str | list[str]


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
                f"`{argument}` must hold no empty text, got one in row {count}; leave it out, or write something."
            )
        digest.update(json.dumps(item).encode() + b"\n")
        count += 1
    if not count:
        raise UserError(f"`{argument}` must hold at least one text, got none; give another file.")
    return Rows(count, digest.hexdigest())


def compute_rows(
    out: Path,
    items: Iterable[Item],
    rows: Rows,
    compute: Callable[[Sequence[Item]], NDArray[np.float32]],
    identity: Any,
    block: int | None = None,
) -> Path:
    """Compute the row of every item, in their order.

    Args:
        out: The file that is to be made of the rows.
        items: What `rows` was counted from, again from the first.
        rows: What `read_once` returned.
        compute: From b items to their rows, (b, width).
        identity: What decides the numbers beside the items; rows of another are begun anew.
        block: Items computed at a time; None is BLOCK.

    Returns:
        A file that `numpy.load` reads, (N, width) float32: `out` with `.part` behind it, for the caller to use and to remove
        with `forget`.
    """
    part, note, block = _part(out), _note(out), block or BLOCK
    wanted = content_hash([rows.count, rows.sha256, identity, block])
    before = runs.read_json(note) if part.exists() else None
    done = int(before["done"]) if before is not None and before.get("of") == wanted else 0
    table: np.memmap[Any, Any] | None = np.lib.format.open_memmap(part, mode="r+") if done else None
    if done:
        _say(f"goes on behind {done:,} of {rows.count:,} rows in {part}")
    begun, told, first = time.monotonic(), time.monotonic(), done
    for chunk in _blocks(islice(iter(items), done, None), block):
        found = compute(chunk)
        if table is None:
            table = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=(rows.count, found.shape[1]))
        table[done : done + len(chunk)] = found
        table.flush()
        done += len(chunk)
        runs.write_json_atomic(note, {"of": wanted, "done": done})
        if time.monotonic() - told > HEARTBEAT and done < rows.count:
            told = time.monotonic()
            left = (told - begun) / (done - first) * (rows.count - done)
            _say(f"{done:,} of {rows.count:,} rows, about {duration(left)} left")
    return part


def forget(out: Path) -> None:
    """Remove what stands beside a file that is made."""
    for own in (_part(out), _note(out)):
        own.unlink(missing_ok=True)


def _part(out: Path) -> Path:
    return out.with_name(f"{out.name}.part")


def _note(out: Path) -> Path:
    return out.with_name(f"{out.name}.progress.json")


def _blocks(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while block := list(islice(items, size)):
        yield block


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
