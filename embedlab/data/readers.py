"""Read a table from a file or the hub: column names, and rows of values with where each stood."""

from __future__ import annotations

import csv
import gzip
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from embedlab import resources
from embedlab.errors import UserError, nearest
from embedlab.json_lines import read_objects

__all__ = ["BUILT_IN", "Table", "is_collection", "read_table"]

BUILT_IN = "stsb"
SUFFIXES = (".csv", ".tsv", ".jsonl", ".txt", ".parquet")
csv.field_size_limit(2**31 - 1)


@dataclass(frozen=True)
class Table:
    """A table of values: strings where they come from CSV or TSV, else of the kinds that the file has.

    Attributes:
        name: What it is called in messages.
        columns: Column names.
        rows: One list of values per row, in the order of `columns`; None where a value is missing.
        lines: Line of the file each row began at, from 1; None where there are no lines.
        remark: What to do if its columns are not those that were meant; nothing where they seem to be.
    """

    name: str
    columns: list[str]
    rows: list[list[Any]]
    lines: list[int] | None = None
    remark: str = ""

    def place(self, row: int) -> str:
        """Say where a row stands, counted from 0 here and from 1 in what is said."""
        return f"{self.name}, row {row + 1}" if self.lines is None else f"{self.name}, line {self.lines[row]}"


def read_table(path: str, split: str, subset: str | None, revision: str | None, quoting: bool | None) -> Table:
    """Read a built-in set, a local file or a set of the hub.

    Args:
        path: `stsb`, a file, or a hub id.
        split: Split of a built-in set or a hub id; a file has none.
        subset: Configuration of a hub id.
        revision: Commit of a hub id.
        quoting: Whether double quotes quote fields; None: in CSV they do, in TSV they do not.

    Raises:
        UserError: If it is not there or cannot be read.
    """
    if path == BUILT_IN:
        _without("stsb, which has none", subset=subset, revision=revision)
        return _stsb(split)
    file = Path(path).expanduser()
    if file.is_file():
        # What a protocol says of the built-in set stays where another file of options replaces its `path` alone.
        left = split in ("train", "validation", "test")
        _without("a file, which has none", split=None if left else split, subset=subset, revision=revision)
        return _file(file, quoting)
    if is_collection(path):
        raise UserError(
            f"`path` must be a table here, got the retrieval set {path!r}, which only `data.validation` takes; `embedlab mine "
            f"{path} -o triplets.jsonl` makes rows to train on."
        )
    if file.is_dir():
        raise UserError(
            f"`path` must be {BUILT_IN!r}, an existing file or a hub id, got the folder {path!r}; name a file in it."
        )
    plain = file.name.removesuffix(".gz")
    if file.is_absolute() or path.startswith((".", "~")) or plain.endswith(SUFFIXES) or path.count("/") != 1:
        folder = file.parent if file.parent.is_dir() else Path()
        beside = {own.name.partition(".")[0]: own.name for own in folder.iterdir() if own.is_file()}
        near = nearest(file.name.partition(".")[0], beside)  # suffixes make all files alike
        way = "; name one that is" if near is None else f"; did you mean {beside[near]}"
        seen = "" if file.is_absolute() else f", seen from the working directory {Path.cwd()}"
        raise UserError(
            f"`path` must be {BUILT_IN!r}, an existing file or a hub id, but {path!r} is not there{seen}{way}."
        )
    return _hub(path, split, subset, revision)


def is_collection(path: str) -> bool:
    """Tell whether a folder of that name holds a retrieval set in BEIR's form."""
    folder = Path(path).expanduser()
    return path != BUILT_IN and any((folder / name).is_file() for name in ("corpus.jsonl", "corpus.jsonl.gz"))


def _without(what: str, **options: str | None) -> None:
    """Refuse options that would do nothing."""
    for name, came in options.items():
        if came is not None:
            raise UserError(f"`{name}` must be left out for {what}, got {came!r}; only a set of the hub has it.")


def _stsb(split: str) -> Table:
    """Read a split of the official STS Benchmark: tab-separated, no quoting, no header, extra columns at the end."""
    path = resources.stsb_file(split)
    names = ["genre", "file", "year", "id", "score", "sentence1", "sentence2"]
    rows: list[list[Any]] = []
    with path.open(encoding="utf-8", newline="\n") as stream:
        for line in stream:
            fields = line.rstrip("\r\n").split("\t")[: len(names)]
            if fields[0] == "main-forum":  # the training file's spelling of main-forums
                fields[0] = "main-forums"
            rows.append(fields)
    return Table(f"{BUILT_IN} {split}", names, rows, list(range(1, len(rows) + 1)))


def _file(path: Path, quoting: bool | None) -> Table:
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in SUFFIXES:
        raise UserError(
            f"`path` must end in {', '.join(SUFFIXES)} (or .gz of all but the last), got {str(path)!r}; rename it."
        )
    try:
        if suffix == ".parquet":
            return _parquet(path)
        with _open(path) as stream:
            if suffix == ".txt":  # a text a line
                texts = [(number, text) for number, line in enumerate(stream, 1) if (text := line.strip())]
                return Table(str(path), ["text"], [[text] for _, text in texts], [number for number, _ in texts])
            if suffix == ".jsonl":
                rows = list(read_objects(stream, path))
                return _records(str(path), [own for _, own in rows], [number for number, _ in rows])
            return _separated(
                path, stream, "\t" if suffix == ".tsv" else ",", suffix == ".csv" if quoting is None else quoting
            )
    except UnicodeDecodeError as error:
        raise UserError(
            f"`path` must be a UTF-8 file, but {str(path)!r} is not{_line_of_bad_byte(path)}; save it as UTF-8."
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise UserError(
            f"`path` must be a file that can be read, but {str(path)!r} cannot ({reason}); mend it."
        ) from error


def _line_of_bad_byte(path: Path) -> str:
    """Say in which line a file stops to be UTF-8; nothing where that cannot be said."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        content.decode()
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        return f" (line {number})"
    except (OSError, EOFError, zlib.error):
        pass
    return ""


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _separated(path: Path, stream: IO[str], delimiter: str, quoting: bool) -> Table:
    reader = csv.reader(stream, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE)
    try:
        return _rows(path, reader, quoting)
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: must be rows of fields, but it is malformed ({error}); mend that line."
        ) from error


def _rows(path: Path, reader: Any, quoting: bool) -> Table:
    """Read the header and the rows of a file of separated fields."""
    columns = next(reader, None)
    if columns is None:
        raise UserError(f"`path` must hold a header line and rows, but {str(path)!r} is empty; write them.")
    if twice := next((own for number, own in enumerate(columns) if own and own in columns[:number]), None):
        raise UserError(f"{path}, line 1: must name each column once, got {twice!r} twice; rename one of them.")
    rows: list[list[Any]] = []
    lines = []
    remark = _other_separator(columns, reader.dialect.delimiter)
    line = reader.line_num + 1
    for row in reader:
        if row:
            if len(row) != len(columns):
                fields = f"{len(columns)} field{'s' if len(columns) > 1 else ''}"
                way = remark or _way(row, len(columns), quoting, reader.line_num > line)
                raise UserError(
                    f"{path}, line {line}: a row must have {fields} as the header has, got {len(row)}; {way}."
                )
            rows.append(row)
            lines.append(line)
        line = reader.line_num + 1
    return Table(str(path), columns, rows, lines, remark)


def _way(row: Sequence[str], wanted: int, quoting: bool, goes_on: bool) -> str:
    """Return the way out for a row of a wrong number of fields.

    Args:
        row: Its fields.
        wanted: Number of fields of the header.
        quoting: Whether double quotes quote fields.
        goes_on: Whether it goes on in the next line, as a quoted field does.
    """
    if not quoting:
        return "set `quoting: true` if fields are quoted" if any('"' in own for own in row) else "mend that line"
    if goes_on:
        return "set `quoting: false` if fields are not quoted, as it goes on in the next line"
    return "put fields that hold a separator between double quotes" if len(row) > wanted else "mend that line"


def _other_separator(columns: Sequence[str], own: str) -> str:
    """Return the way out where a header of one column seems to be one of several; nothing where it does not."""
    found = next((sign for sign in "\t;,|" if sign != own and sign in columns[0]), "") if len(columns) == 1 else ""
    if not found:
        return ""
    shown = {sign: "a tab" if sign == "\t" else repr(sign) for sign in (own, found)}
    name = {"\t": ", or call it .tsv", ",": ", or call it .csv"}.get(found, "")
    return f"separate fields by {shown[own]}, not by {shown[found]} as they seem to be{name}"


def _parquet(path: Path) -> Table:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        records = parquet.read_table(path).to_pylist()
    except (pa.ArrowException, OSError, OverflowError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"`path` must be a Parquet file, but {str(path)!r} is not ({reason}); write it anew."
        ) from error
    return _records(str(path), records)


def _records(name: str, records: Sequence[dict[str, Any]], lines: list[int] | None = None) -> Table:
    columns = list(dict.fromkeys(key for record in records for key in record))
    return Table(name, columns, [[record.get(column) for column in columns] for record in records], lines)


def _hub(name: str, split: str, subset: str | None, revision: str | None) -> Table:
    import datasets

    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(name, subset, split=split, revision=revision)
    except Exception as error:  # the hub's client raises many unrelated kinds
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"`path` must be {BUILT_IN!r}, an existing file or a reachable hub id, but {name!r} (split {split!r}, revision "
            f"{revision or 'main'}) could not be fetched{offline}: {reason}; check the name and the network, or give a file."
        ) from error
    return _records(f"{name} {split}", list(found))
