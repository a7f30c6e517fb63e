"""Read texts and pairs out of files of any size, a row at a time."""

from __future__ import annotations

import csv
import gzip
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TextIO

from embedlab.errors import UserError, did_you_mean
from embedlab.json_lines import read_objects

__all__ = ["beside_vectors", "columns_of", "pairs_of", "texts_of"]

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
        near = "" if path.exists() else did_you_mean(path.name, beside, listing=False)
        what = "is no file" if path.exists() else "is not there"
        raise UserError(f"`{argument}` must be a file, but {path} {what}{near or '; name another one'}.")
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
        if column is not None:
            raise UserError(
                f"`--column` must be left out for plain lines such as those of {path}, got {column!r}; leave it out."
            )
        with _opened(path, argument) as file:
            yield from ((str(number), line.rstrip("\r\n")) for number, line in enumerate(file))
        return
    chosen, named = column, None
    for number, (place, row) in enumerate(_rows(path, argument)):
        if chosen is None:
            chosen = next((name for name in TEXT if name in row), None)
            if chosen is None:
                raise UserError(
                    f"`--column` must name the column with the texts of {path}, which has {', '.join(row)}; name one of them."
                )
        text = _text(row, chosen, place)
        if column is None and row.get("title"):
            text = f"{row['title']} {text}".strip()  # as in BEIR
        own = next((row[name] for name in ("_id", "id") if row.get(name) not in (None, "")), None)
        named = own is not None if named is None else named
        if (own is not None) != named:
            raise UserError(
                f"`{argument}` must have an id in every row or in none, but {place} has {'none' if named else 'one'}; give all "
                "one, or no row."
            )
        yield str(number if own is None else own), text


def each_its_own(texts: Iterable[tuple[str, str]], argument: str, way: str) -> Iterator[tuple[str, str]]:
    """Pass ids and texts on; ids are all that is held, about 100 bytes each.

    Args:
        texts: What `texts_of` yields.
        argument: What the file was typed as.
        way: What can be done about an id that has come before.

    Raises:
        UserError: If one has.
    """
    seen = set[str]()
    for number, (own, text) in enumerate(texts, 1):
        if own in seen:
            raise UserError(
                f"`{argument}` must have an id of its own for each text, got {own!r:.60} a second time, as text {number}; {way}."
            )
        seen.add(own)
        yield own, text


def pairs_of(path: Path, argument: str, columns: Sequence[str]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Yield the texts in some columns of every row, and the whole row.

    Raises:
        UserError: If a row lacks one; the sentence names file and line.
    """
    for place, row in _rows(path, argument):
        yield [_text(row, column, place) for column in columns], row


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
            for number, row in read_objects(file, path, plain=True):
                yield f"line {number} of {path}", row
            return
        dialect: dict[str, Any] = {"strict": True} if kind == ".csv" else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
        table = csv.DictReader(file, **dialect)
        names = list(table.fieldnames or ())
        if repeated := [name for name in names if names.count(name) > 1]:
            raise UserError(
                f"{path} must have columns of different names, but {repeated[0]!r} stands twice; rename one."
            )
        before = 1
        for own in _whole_rows(table, path):
            place = f"line {before + 1} of {path}"  # where it begins
            before = table.line_num
            if None in own.values():
                raise UserError(f"{place} must have {len(names)} fields, but it has fewer; correct it.")
            if None in own:
                raise UserError(f"{place} must have {len(table.fieldnames or ())} fields, but it has more; correct it.")
            yield place, own


def _whole_rows(table: csv.DictReader[str], path: Path) -> Iterator[dict[Any, Any]]:
    """Yield the rows of a table; refuse a quote that is never closed, which would swallow all that follows."""
    begun = 1
    try:
        for row in table:
            yield row
            begun = table.line_num
    except csv.Error as error:
        raise UserError(
            f"line {begun + 1} of {path} must be CSV, but it is not ({error}); close its quotes, or double those inside."
        ) from error


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
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(
                f"`{argument}` must be a whole gzip file, but {path} is damaged ({error}); fetch it again."
            ) from error


def beside_vectors(path: Path) -> Path:
    """Return the file that says of which texts and by what the vectors in a .npy file are."""
    return path.with_name(f"{path.name}.json")
