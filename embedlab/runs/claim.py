"""A run folder belongs to one process at a time, and remembers what each of them computes with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from embedlab.errors import UserError
from embedlab.runs import schema
from embedlab.runs.folder import (
    IDENTITY,
    LAST,
    METRICS,
    STAGES,
    read_json,
    read_result,
    write_json_atomic,
    write_text_atomic,
)
from embedlab.runs.status import mark, read_status

__all__ = ["MADE", "claim", "parts_of", "resumed"]

MADE: Final = ".made.json"  # code and versions of each part of the run, from 1

Part = Mapping[str, Mapping[str, str]]


def claim(folder: Path, identity: str, code: Mapping[str, str], versions: Mapping[str, str]) -> FileLock:
    """Take a run folder for this process.

    A folder with an unfinished run of the same identity is resumed, and one in which nothing was learned yet is taken over.

    Args:
        folder: The run folder.
        identity: Hash of what decides the run.
        code: Of this process, see `embedlab.runs.code`.
        versions: Of the packages it uses.

    Returns:
        The lock on the folder; it is free again when this is let go of, or the process ends, however it ends.

    Raises:
        UserError: If it holds another run, or a finished one, or another process is at it.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        status = read_status(folder)
        holder = "another process" if status is None else f"process {status.pid} on {status.host}"
        raise UserError(
            f"`run_dir` must be free, but {holder} is at work in {folder}; wait for it, or name another one."
        ) from error
    marker = folder / IDENTITY
    if read_result(folder) is not None:
        status = read_status(folder)
        if status is not None and status.state != "done":  # killed between the last two writes
            mark(folder, "done")
        raise UserError(
            f"`run_dir` must be a new folder, but {folder} holds a finished run; name another one, or delete it."
        )
    begun = _goes_on(folder)
    if begun and marker.exists() and marker.read_text() != identity:
        raise UserError(
            f"`run_dir` must be a new folder or that of the same run, but {folder} holds an unfinished run with other "
            "settings, data or code; name another one, or delete it."
        )
    now = {"code": dict(code), "versions": dict(versions)}
    parts = parts_of(folder) if begun else []
    if now not in parts:
        content = {str(number): own for number, own in enumerate([*parts, now], 1)}
        write_json_atomic(folder / MADE, {"parts": content})
    if not marker.exists() or marker.read_text() != identity:
        write_text_atomic(marker, identity)
    curves = folder / METRICS
    if curves.exists():  # the logger starts its file anew
        number = sum(1 for _ in folder.glob("metrics-before-*.csv")) + 1
        curves.rename(folder / f"metrics-before-{number}.csv")
    mark(folder, "running", identity=identity)
    return lock


def _goes_on(folder: Path) -> bool:
    """Tell whether there is anything learned in a folder that a run would go on from."""
    return (folder / LAST).exists() or any((folder / STAGES).rglob("*.ckpt"))


def parts_of(folder: Path) -> list[Part]:
    """Return `code` and `versions` of the parts of a run, the first one first; equal parts are one.

    Raises:
        UserError: If what tells of them is damaged.
    """
    content: dict[str, Any] = read_json(folder / MADE) or {}
    schema.check(content, schema.MADE, folder / MADE)
    return list((content.get("parts") or {}).values())


def resumed(parts: list[Part]) -> list[str]:
    """Say with what other code and versions a run was resumed.

    >>> resumed([{"code": {"packing": "a b"}, "versions": {"torch": "1"}}, {"code": {"packing": "c b"}, "versions": {}}])
    []
    """
    first, *later = parts
    code = {
        name for part in later for name, own in part["code"].items() if _tree(own) != _tree(first["code"].get(name))
    }
    versions = {
        f"{name} {own}"
        for part in later
        for name, own in part["versions"].items()
        if own != first["versions"].get(name)
    }
    found = [("code", code), ("versions", versions)]
    return [f"resumed under other {what}: {', '.join(sorted(own))}" for what, own in found if own]


def _tree(code: str | None) -> str | None:
    """Return the hash of a module in which comments and layout do not count."""
    return None if code is None else code.rpartition(" ")[2]
