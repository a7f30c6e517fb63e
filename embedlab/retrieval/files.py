"""Read the files of a BEIR folder line by line, with where each line stands; no file is held whole."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from embedlab.errors import UserError
from embedlab.json_lines import read_objects

__all__ = ["HEADER", "Row", "found", "read_jsonl", "read_tsv", "record_of", "splits", "text_of"]

HEADER: Final = ("query-id", "corpus-id", "score")
Row = tuple[str, Mapping[str, Any]]  # where it stands, as messages say it, and its fields


def found(folder: Path, name: str) -> Path | None:
    """Return a file of a folder, plain or gzipped, or None if there is neither.

    Args:
        folder: The folder.
        name: The file's name without `.gz`.

    Raises:
        UserError: If there are both.
    """
    there = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if len(there) > 1:
        raise UserError(f"`path` must hold one {name}, but {str(folder)!r} has it gzipped too; remove one of the two.")
    return there[0] if there else None


def splits(folder: Path) -> list[str]:
    """Return the names of the splits that a BEIR folder has judgements for."""
    return sorted({path.name.removesuffix(".gz").removesuffix(".tsv") for path in (folder / "qrels").glob("*.tsv*")})


def read_jsonl(path: Path) -> Iterator[Row]:
    """Yield the objects of a JSONL file, gzipped or not; blank lines are passed over.

    Raises:
        UserError: If a line is no JSON object, or the file cannot be read.
    """
    for number, record in read_objects((line for _, line in _lines(path)), path):
        yield f"{path}, line {number}", record


def read_tsv(path: Path) -> Iterator[Row]:
    """Yield the judgements of a tab-separated file, whose first line is BEIR's header.

    Raises:
        UserError: If the header or a line is malformed, or the file cannot be read.
    """
    wanted = ", ".join(HEADER)
    number = 0
    for number, line in _lines(path):
        fields = line.split("\t")
        if number == 1:
            if tuple(fields) != HEADER:
                raise UserError(
                    f"{path}, line 1: must be the header {wanted}, separated by tabs, got {line[:60]!r}; put it there."
                )
        elif line.strip():
            if len(fields) != len(HEADER):
                raise UserError(
                    f"{path}, line {number}: must have the {len(HEADER)} fields {wanted}, separated by tabs, "
                    f"got {len(fields)}; mend that line."
                )
            yield f"{path}, line {number}", dict(zip(HEADER, fields, strict=True))
    if number == 0:
        raise UserError(
            f"`path` must hold judgements, but {str(path)!r} is empty; give it the header {wanted} and rows."
        )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a UTF-8 file with their numbers; only a newline ends a line."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            for line in stream:
                number += 1
                content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                yield number, content.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {number}: must be UTF-8, but is not; save the file as UTF-8.") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise UserError(
            f"`path` must be a file that can be read, but {str(path)!r} cannot after line {number} ({reason}); fetch it anew."
        ) from error


def text_of(place: str, record: Mapping[str, Any]) -> str:
    """Return the text of a document or query: title, a space, text, without white space around; a title may be missing.

    >>> text_of("here", {"title": "Wings", "text": "They lift."}), text_of("here", {"text": "They lift."})
    ('Wings They lift.', 'They lift.')
    """
    title = "" if record.get("title") is None else _string(place, record, "title")
    return f"{title} {_string(place, record, 'text')}".strip()


def record_of(place: str, record: Mapping[str, Any]) -> tuple[str, str]:
    """Return id and text of a document or query."""
    own = _string(place, record, "_id")
    if not own.strip():
        raise UserError(f"{place}: `_id` must not be empty, got {own!r}; give each line one of its own.")
    return own, text_of(place, record)


def _string(place: str, record: Mapping[str, Any], name: str) -> str:
    """Return a field that has to be a string."""
    if name not in record:
        raise UserError(f"{place}: `{name}` must be there, got the fields {', '.join(record) or 'none'}; add it.")
    value = record[name]
    if not isinstance(value, str):
        came = "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
        raise UserError(f"{place}: `{name}` must be a string, got {came}; write it between double quotes.")
    return value
