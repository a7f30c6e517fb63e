"""Read texts and pairs out of files of any size, a row at a time."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TextIO

from embedlab.errors import UserError, did_you_mean

__all__ = ["columns_of", "texts_of", "values_of"]

KINDS: Final = (".txt", ".jsonl", ".csv", ".tsv")
TEXT: Final = ("text", "sentence", "query")  # where no column is named
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # of one field; the default ends in the middle of a document


def kind_of(path: Path, argument: str) -> str:
    """Return the ending of a file's name, `.gz` left out.

    Raises:
        UserError: If there is no such file, or it is none of those read here.
    """
    if not path.is_file():
        beside = [own.name for own in path.parent.iterdir()] if path.parent.is_dir() else []
        what = "is a folder" if path.is_dir() else "is not there"
        raise UserError(
            f"`{argument}` must be a file, but {path} {what}{did_you_mean(path.name, beside, listing=False)}."
        )
    kind = (path.with_suffix("") if path.suffix == ".gz" else path).suffix
    if kind not in KINDS:
        raise UserError(
            f"`{argument}` must end in {', '.join(KINDS)} (.gz behind it or not), got {path.name}; convert it."
        )
    return kind


def columns_of(path: Path, argument: str) -> list[str]:
    """Return the names of a file's columns; none for plain lines."""
    if kind_of(path, argument) == ".txt":
        return []
    first = next(_rows(path, argument), None)
    if first is None:
        raise UserError(f"`{argument}` must hold rows, but {path} is empty; give another file.")
    return list(first[1])


def texts_of(path: Path, argument: str, column: str | None = None) -> Iterator[tuple[str, str]]:
    """Yield id and text of every row.

    Args:
        path: A file of lines, of JSON objects, or a table with a header; gzipped or not.
        argument: What it is called in messages.
        column: Column of the text; None takes `text`, `sentence` or `query`, with a `title` before it where there is one.

    Yields:
        The row's `_id` or `id`, or its number from 0; and its text.

    Raises:
        UserError: If a row has no text; the sentence names file and line.
    """
    if kind_of(path, argument) == ".txt":
        with _opened(path, argument) as file:
            yield from ((str(number), line.rstrip("\r\n")) for number, line in enumerate(file))
        return
    chosen = column
    for number, (place, row) in enumerate(_rows(path, argument)):
        if chosen is None:
            chosen = next((name for name in TEXT if name in row), None)
            if chosen is None:
                raise UserError(
                    f"`--column` must name the column with the texts of {path}, which has {', '.join(row)}."
                )
        text = _text(row, chosen, place)
        if column is None and row.get("title"):
            text = f"{row['title']} {text}".strip()  # as in BEIR
        yield str(row.get("_id", row.get("id", number))), text


def values_of(path: Path, argument: str, columns: Sequence[str]) -> Iterator[list[str]]:
    """Yield the texts in some columns of every row.

    Raises:
        UserError: If a row lacks one; the sentence names file and line.
    """
    for place, row in _rows(path, argument):
        yield [_text(row, column, place) for column in columns]


def _text(row: dict[str, Any], column: str, place: str) -> str:
    text = row.get(column)
    if not isinstance(text, str):
        came = "none" if text is None else f"{type(text).__name__} {text!r:.40}"
        raise UserError(
            f"`{column}` in {place} must be a text, got {came}{did_you_mean(column, [k for k in row if k != column])}."
        )
    return text


def _rows(path: Path, argument: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of every row, in words, and the row by column."""
    kind = kind_of(path, argument)
    with _opened(path, argument) as file:
        if kind == ".jsonl":
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise UserError(
                        f"line {number} of {path} must be JSON, but it is not ({error}); correct it."
                    ) from error
                if isinstance(row, str):
                    row = {"text": row}
                if not isinstance(row, dict):
                    raise UserError(
                        f"line {number} of {path} must be an object or a text, got {line.strip()[:40]}; correct it."
                    )
                yield f"line {number} of {path}", row
            return
        dialect: dict[str, Any] = {} if kind == ".csv" else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
        table = csv.DictReader(file, **dialect)
        for own in table:
            place = f"line {table.line_num} of {path}"
            if None in own:
                raise UserError(f"{place} must have {len(table.fieldnames or ())} fields, but it has more; correct it.")
            yield place, own


@contextmanager
def _opened(path: Path, argument: str) -> Iterator[TextIO]:
    """Open a file as UTF-8, gzipped or not."""
    with (
        gzip.open(path, "rt", encoding="utf-8-sig", newline="")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8-sig", newline="") as file
    ):
        try:
            yield file
        except UnicodeDecodeError as error:
            raise UserError(f"`{argument}` must be UTF-8, but {path} is not ({error.reason}); convert it.") from error
        except (gzip.BadGzipFile, EOFError) as error:
            raise UserError(
                f"`{argument}` must be a whole gzip file, but {path} is damaged ({error}); fetch it again."
            ) from error
