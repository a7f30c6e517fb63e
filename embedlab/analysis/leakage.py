"""`embedlab leakage`: how much of a test set stands in a training set."""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table

from embedlab.arguments import Parser, check_new
from embedlab.errors import UserError
from embedlab.report.command import console
from embedlab.runs import write_json_atomic
from embedlab.runs.folder import written_whole
from embedlab.yaml_files import read_value

if TYPE_CHECKING:
    from embedlab.analysis.overlaps import Count, Overlaps
    from embedlab.data.sources import Rows, Source

__all__ = ["main"]

HUB_PARTS: Final = 3  # name, subset, split
FIELDS: Final = ("test_row", "kind", "train_row", "jaccard", "test_text", "train_text")
EPILOG: Final = """\
TRAIN and TEST: stsb, a file, or a hub id, with a split behind a colon (and a subset between) where there is one; or what a
configuration has as a source, such as '{path: my.csv, where: {genre: news}, quoting: false}'. Without a split, TRAIN is
`train` and TEST is `test`.

examples:
  embedlab leakage stsb:train stsb:test --csv rows.csv
  embedlab leakage my-train.csv my-test.jsonl --columns '{first: question, second: other}'
  embedlab leakage triplets.jsonl org/name:subset:test --test-columns '{text: [premise, hypothesis]}'"""


def main(arguments: Sequence[str]) -> int:
    """Run `embedlab leakage`.

    Args:
        arguments: What was typed after `leakage`.

    Returns:
        Exit status 0.

    Raises:
        UserError: If a set cannot be read, or a file not be written.
    """
    options = _options(arguments)
    given: dict[str, dict[str, Any]] = {}
    typed = {}  # where the columns of each set were given, or can be
    for name, word in (("TRAIN", options.train), ("TEST", options.test)):
        own: str | None = vars(options)[f"{name.lower()}_columns"]
        for_both = own is None and options.columns is not None
        typed[name] = "--columns" if for_both else f"--{name.lower()}-columns"
        given[name] = _arguments(name, word, options.columns if for_both else own, typed[name])
        if own is None and not for_both and "columns" in given[name]:
            typed[name] = f"{name}.columns"
    # torch is imported here, after what is quick
    sources = {name: _source(name, own, typed[name]) for name, own in given.items()}
    if sources["TRAIN"] == sources["TEST"]:
        raise UserError(
            f"`TEST` must be another set than `TRAIN`, got {options.test} for both; name another split or file."
        )
    rows = {name: _read(name, source, typed[name]) for name, source in sources.items()}

    from embedlab.analysis.overlaps import Overlaps
    from embedlab.data.leaks import row_texts

    found = Overlaps(row_texts(rows["TRAIN"]), row_texts(rows["TEST"]))
    counts = [*found.equal(), *found.similar()]
    _show(sources, rows, counts)
    _write(options, given, rows, counts, found)
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "embedlab leakage",
        "Count the test rows that overlap with training rows: by equal sentences, equal pairs, and near-duplicates.",
        EPILOG,
    )
    parser.add_argument("train", metavar="TRAIN", help="the training rows")
    parser.add_argument("test", metavar="TEST", help="the rows that are evaluated")
    for option, whose in (("--columns", "both"), ("--train-columns", "TRAIN"), ("--test-columns", "TEST")):
        parser.add_argument(
            option, metavar="ROLES", help=f"column of each role in {whose}, such as '{{first: a, second: b}}'"
        )
    parser.add_argument(
        "--csv", metavar="FILE", type=Path, help="write which test rows overlap with which training rows"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="the same, with the counts")
    options = parser.read(arguments)
    for name in ("csv", "json"):
        if (path := getattr(options, name)) is not None:
            check_new(path, f"--{name}", f".{name}")
    return options


def _arguments(name: str, word: str, columns: str | None, option: str) -> dict[str, Any]:
    """Return the arguments of a source as it was typed, with the columns that an option gives.

    >>> _arguments("TEST", "org/name:sub:dev", None, "--columns")
    {'path': 'org/name', 'split': 'dev', 'subset': 'sub'}
    """
    if word.lstrip().startswith("{"):
        given = read_value(word)
        if not isinstance(given, dict) or "path" not in given:
            raise UserError(
                f"`{name}` must be a mapping with a `path` where it begins with a brace, got {word}; mend it."
            )
    elif Path(word).expanduser().exists():
        given = {"path": word}
    else:
        path, *parts = word.split(":")
        if not all((path, *parts)) or len(parts) >= HUB_PARTS:
            raise UserError(f"`{name}` must be PATH, PATH:SPLIT or PATH:SUBSET:SPLIT, got {word}; mend it.")
        if parts and Path(path).expanduser().is_file():
            raise UserError(f"`{name}` must be a file without a split, got {word}; files have none, name {path} alone.")
        given = {"path": path, "split": parts[-1] if parts else name.lower()}
        given |= {"subset": parts[0]} if len(parts) > 1 else {}
    if columns is None:
        return given
    roles = read_value(columns)
    if not isinstance(roles, dict):
        raise UserError(f"`{option}` must map roles to columns, got {columns}; write '{{first: A, second: B}}'.")
    if "columns" in given:
        raise UserError(f"`{option}` must be left out where `{name}` has `columns` of its own; say them in one place.")
    return {**given, "columns": roles}


def _source(name: str, given: Mapping[str, Any], option: str) -> Source:
    """Build a source; values of a wrong kind are refused as they are in a configuration."""
    from jsonargparse import ArgumentError, ArgumentParser

    from embedlab.data.sources import Source, as_source

    as_source({"path": "", **dict.fromkeys(given)}, name)  # refuses unknown names
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Source, "source")
    try:
        return Source(**parser.parse_object({"source": dict(given)}).source)
    except ArgumentError as error:
        key = next((own for own in given if f'"source.{own}' in str(error)), "path")
        said = option if key == "columns" else f"{name}.{key}"
        raise UserError(
            f"`{said}` must be what a source takes there, got {given[key]!r}; see `Your data` in the README."
        ) from error


def _read(name: str, source: Source, option: str) -> Rows:
    """Read a source; what is wrong with it is said in the words of this command."""
    try:
        return source.read(scored=False)
    except UserError as error:
        said = str(error).replace("`columns`", f"`{option}`").replace("`path` must be", f"`{name}` must be")
        raise UserError(said if f"`{name}`" in said else f"`{name}`: {said}") from error


def _show(sources: Mapping[str, Source], rows: Mapping[str, Rows], counts: Sequence[Count]) -> None:
    screen, texts = console(), dict(zip(("TEST", "TRAIN", "shared"), counts[0].distinct or (), strict=True))
    for name, source in sources.items():
        split = "" if Path(source.path).expanduser().is_file() else f" {source.part}"
        held = f"{len(rows[name]):,} {rows[name].kind}, {texts[name]:,} distinct texts"
        screen.print(f"{name}: {source.path}{split}, {held}", markup=False)
    columns = ("compared", "a text shared", "both", "same pair", "either order")
    table = Table(*columns, "distinct: test", "train", "shared", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for own in counts:
        share = f"{own.one:,} ({own.one / len(rows['TEST']):.1%})"
        numbers = (own.both, own.same, own.either, *(own.distinct or (None,) * 3))
        table.add_row(own.compared, share, *("-" if number is None else f"{number:,}" for number in numbers))
    screen.print(table)
    screen.print(
        "Numbers of test rows. Normalised: lower-cased, letters and digits only. Jaccard: of character 5-grams."
    )


def _write(
    options: argparse.Namespace,
    given: Mapping[str, Mapping[str, Any]],
    rows: Mapping[str, Rows],
    counts: Sequence[Count],
    found: Overlaps,
) -> None:
    """Write the rows that overlap, where that is asked for."""
    if options.csv is not None:
        part = options.csv.with_name(f".{options.csv.name:.50}.{os.getpid()}.part")
        with written_whole(options.csv, part), part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(found.rows())
        print(f"overlapping rows: {options.csv}")  # noqa: T201  # the command's answer
    if options.json is not None:
        sets = {
            name.lower(): {**own, "rows": len(rows[name]), "sha256": rows[name].sha256} for name, own in given.items()
        }
        content = {**sets, "counts": [own.record() for own in counts], "overlapping": list(found.rows())}
        write_json_atomic(options.json, content)
        print(f"overlapping rows: {options.json}")  # noqa: T201
