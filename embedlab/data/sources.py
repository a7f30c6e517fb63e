"""A source: which table, which columns play which role, which rows are kept."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from embedlab.data.apart import shared_texts
from embedlab.data.batches import Side
from embedlab.data.cells import has, plain, tells_content, text_in
from embedlab.data.readers import BUILT_IN, Table, is_collection, read_table
from embedlab.errors import UserError, did_you_mean

__all__ = ["Rows", "Source", "as_source"]

ROLES = {
    "pairs": ("first", "second", "score"),
    "triplets": ("anchor", "positive", "negative"),
    "texts": ("text",),
}
# Columns that need no `columns:`, by kind of rows.
DEFAULT_COLUMNS = (
    ("pairs", {"first": "sentence1", "second": "sentence2", "score": "score"}),
    *((kind, {role: role for role in roles}) for kind, roles in ROLES.items()),
)
OPTIONAL = ("score", "negative")
SEARCHED = ("judgements_revision", "same_id_left_out", "leave_out_unknown")  # of a retrieval set only
SEVERAL = ("text", "negative")  # may have several columns


@dataclass(frozen=True)
class Rows:
    """What a source holds, checked.

    Attributes:
        kind: "pairs", "triplets" or "texts".
        texts: For each role of the kind its texts; several columns for `negative` are several texts per row.
        score: Scores of pairs, 0 to 1, or None.
        meta: Other columns by name, of texts, numbers and lists or mappings of them; images and sounds are left out.
        query: Which text of a pair searches; no content, so `sha256` does not see it.
        cut: Whether a `limit` left rows out; no content either.
        sha256: Hash of the content.
    """

    kind: str
    texts: dict[str, list[list[str]]]
    score: list[float] | None = None
    meta: dict[str, list[str]] = field(default_factory=dict)
    query: Side = "first"
    cut: bool = False

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.texts.values())))

    @property
    def sha256(self) -> str:
        """Hash of the content that a run sees."""
        content = json.dumps([self.kind, self.texts, self.score, self.meta], ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @cached_property
    def shared(self) -> list[tuple[int, ...]]:
        """For each row, numbers of the texts that other rows hold too."""
        return shared_texts([[text for own in row for text in own] for row in self._by_row()])

    def all_texts(self) -> list[str]:
        """Return the distinct texts, in the order they are first seen, row by row."""
        return list(dict.fromkeys(text for row in self._by_row() for own in row for text in own))

    def _by_row(self) -> Iterator[tuple[list[str], ...]]:
        return zip(*self.texts.values(), strict=True)


@dataclass
class Source:
    """Where texts come from.

    What the rows are follows from the roles of their columns: `first` and `second` make pairs, `anchor` and
    `positive` triplets, `text` plain texts. The order of columns never decides. A folder in BEIR's form, or a hub id with its
    `judgements_revision`, has no columns: it is a retrieval set, which `data.validation` takes.

    Args:
        path: `stsb` (built in), a file (.csv, .tsv, .jsonl, .txt, gzipped or not, or .parquet), or a hub id.
        split: Split of `stsb` or of a hub id, `train` by default; a file has none. Of a retrieval set whose judgements, those of
            `dev` or `validation` by default, on the hub of `validation`.
        subset: Configuration of a hub id.
        revision: Commit of a hub id; pin it, or a rerun may see other data.
        columns: Column of each role; a list for `text` (all of them, row by row) and `negative` (several per
            row). By default `sentence1`, `sentence2` and `score`, or columns called like the roles.
        where: Keep rows whose column holds this value, or one of a list, as text: `true`, and `2012` for 2012.0.
        score_range: Lowest and highest possible score, scaled to 0 and 1; 0 to 1 by default, 0 to 5 for `stsb`.
        quoting: Whether double quotes quote fields; by default in CSV they do, in TSV they do not.
        limit: Keep this many rows, drawn once and for all, in their order; of a retrieval set the first queries, as `embedlab
            evaluate --cut` does.
        distinct: Whether a repeated plain text is kept once.
        query: Which text of a pair searches, for strategies that read queries and documents differently.
        judgements_revision: Commit of the judgements of a hub id, `<path>-qrels`; makes the hub id one of a retrieval set.
        same_id_left_out: Whether a document with a query's id is no answer to it; for a retrieval set that shares ids.
        leave_out_unknown: Whether judgements of unknown queries or documents are passed over; for a retrieval set.
    """

    path: str
    split: str | None = None
    subset: str | None = None
    revision: str | None = None
    columns: dict[str, str | list[str]] | None = None
    where: dict[str, str | list[str]] | None = None
    score_range: tuple[float, float] | None = None
    quoting: bool | None = None
    limit: int | None = None
    distinct: bool = True
    query: Side = "first"
    judgements_revision: str | None = None
    same_id_left_out: bool | None = None
    leave_out_unknown: bool = False

    @property
    def searches(self) -> bool:
        """Whether it is a retrieval set: a folder in BEIR's form, or a hub id of which it is said."""
        return self.judgements_revision is not None or is_collection(self.path)

    @property
    def part(self) -> str:
        """The split of a table."""
        return "train" if self.split is None else self.split

    def read(self, scored: bool = True, needs_scores: bool = True) -> Rows:
        """Read and check the rows.

        Args:
            scored: Whether the scores of pairs are wanted; else their column counts among the others.
            needs_scores: Whether a fault in a score is one of the source; else the rows then have none.

        Raises:
            UserError: If anything is missing or wrong; the sentence names file and line.
        """
        if self.limit is not None and self.limit < 1:
            raise UserError(f"`limit` must be at least 1 row, got {self.limit}; raise it, or leave it out.")
        for name in ("path", "split", "subset", "revision"):
            if getattr(self, name) == "":
                raise UserError(f"`{name}` must not be empty, got ''; give one, or leave it out.")
        for name in SEARCHED:
            if came := getattr(self, name):
                shown, unset = ("true", "false") if came is True else (repr(came), "null")
                raise UserError(
                    f"`{name}` must be left out for {self.path}, as only a retrieval set has it, got {shown}; leave it out, or "
                    f"set it to {unset} where another file sets it."
                )
        table = read_table(self.path, self.part, self.subset, self.revision, self.quoting)
        kind, columns = self._roles(table)
        if not scored:
            columns.pop("score", None)
        if kind != "pairs" and self.query != "first":
            raise UserError(f"`query` must be left out for {kind}, got {self.query!r}; it is a side of pairs.")
        fitting = self._fitting(table)
        limit = len(fitting) if self.limit is None else self.limit
        cut = limit < len(fitting)
        chosen = sorted(random.Random(0).sample(fitting, limit)) if cut else fitting
        place = {name: index for index, name in enumerate(table.columns)}
        texts = {
            role: [[text_in(table, row, place[own], own) for own in names] for row in chosen]
            for role, names in columns.items()
            if role != "score"
        }
        score = None
        if "score" in columns:
            score = self._scores(table, chosen, place[columns["score"][0]], needs_scores)
        if kind == "texts":
            flat = [text for row in texts["text"] for text in row]
            kept = dict.fromkeys(flat) if self.distinct else flat
            return Rows(kind, {"text": [[text] for text in kept]}, cut=cut)
        used = {name for names in columns.values() for name in names}
        others = {name: [table.rows[row][i] for row in chosen] for name, i in place.items() if name not in used}
        meta = {name: [*map(plain, values)] for name, values in others.items() if tells_content(values)}
        return Rows(kind, texts, score, meta, self.query, cut)

    def _roles(self, table: Table) -> tuple[str, dict[str, list[str]]]:
        """Find the kind of rows and the columns of each role."""
        if self.columns is None:
            for kind, defaults in DEFAULT_COLUMNS:
                if all(name in table.columns for role, name in defaults.items() if role not in OPTIONAL):
                    return kind, {role: [name] for role, name in defaults.items() if name in table.columns}
            raise UserError(
                f"`columns` must say which column of {table.name} plays which role, as it has none of those read "
                f"by default (sentence1 and sentence2, first and second, anchor and positive, text); {has(table)}."
            )
        kind = next((own for own, roles in ROLES.items() if roles[0] in self.columns), "")
        if not kind:
            raise UserError(
                f"`columns` must name first and second, anchor and positive, or text, got {list(self.columns)}; write "
                "such as {first: A, second: B}."
            )
        roles = ROLES[kind]
        for role in self.columns:
            if role not in roles:
                raise UserError(
                    f"`columns` of {kind} must be among {', '.join(roles)}, got {role!r}"
                    f"{did_you_mean(role, roles, listing=False) or '; leave it out'}."
                )
        for role in roles:
            if role not in self.columns and role not in OPTIONAL:
                raise UserError(f"`columns` of {kind} must name {role!r} too, got {list(self.columns)}; add it.")
        named = {role: [own] if isinstance(own, str) else list(own) for role, own in self.columns.items()}
        for role, names in named.items():
            if not names or "" in names:
                came = "an empty name" if names else "none"
                raise UserError(f"`columns` must name a column for {role!r}, got {came}; {has(table)}.")
            if len(names) > 1 and role not in SEVERAL:
                raise UserError(
                    f"`columns` must name one column for {role!r}, got {len(names)}; only {' and '.join(SEVERAL)} take several."
                )
            for name in names:
                if name not in table.columns:
                    outer = name.partition(".")[0]
                    way = did_you_mean(name, table.columns, listing=False)
                    if outer in table.columns:
                        way = f", which stands inside {outer!r}: nested columns are not read; write it as a column of its own"
                    raise UserError(
                        f"`columns` must name columns of {table.name}, got {name!r} for {role!r}{way}; {has(table)}."
                    )
        return kind, named

    def _fitting(self, table: Table) -> list[int]:
        """Return the indices of the rows that fit `where`."""
        fitting = list(range(len(table.rows)))
        where = {  # Python may give a number
            name: [*map(plain, own)] if isinstance(own, list) else plain(own)
            for name, own in (self.where or {}).items()
        }
        for name, value in where.items():
            if name not in table.columns:
                near = did_you_mean(name, table.columns, listing=False)
                raise UserError(f"`where` must name columns of {table.name}, got {name!r}{near or f'; {has(table)}'}.")
            index = table.columns.index(name)
            wanted = value if isinstance(value, list) else [value]
            fitting = [row for row in fitting if plain(table.rows[row][index]) in wanted]
        if not fitting:
            left = f" where {where}; ask for other values" if where else "; name another one"
            raise UserError(f"`path` must hold at least one row, but {table.name} has none{left}.")
        return fitting

    def _scores(self, table: Table, chosen: Sequence[int], index: int, needed: bool) -> list[float] | None:
        """Read the scores of some rows; None where one of them is none, and none is needed."""
        low, high = self.score_range or ((0.0, 5.0) if self.path == BUILT_IN else (0.0, 1.0))
        if not low < high:
            raise UserError(f"`score_range` must be lowest and highest score, got {[low, high]}; put the lowest first.")
        try:
            return [self._score(table, row, index, low, high) for row in chosen]
        except UserError as error:
            if needed:
                raise
            if "score" in (self.columns or {}):  # which says that scores are wanted
                raise UserError(
                    f"{str(error).rstrip('.')}; or name no score in `columns`, as none is needed."
                ) from None
            return None

    @staticmethod
    def _score(table: Table, row: int, index: int, low: float, high: float) -> float:
        """Read a score and scale it to 0 to 1."""
        came = plain(table.rows[row][index])
        try:
            value = float(came)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(
                f"{table.place(row)}: `score` must be a number, got {came!r}; write one, or leave the row out."
            )
        if not low <= value <= high:
            raise UserError(
                f"{table.place(row)}: `score` must lie in {low:g} to {high:g}, got {came}; set `score_range` to its scale."
            )
        return (value - low) / (high - low)


def as_source(given: Any, argument: str) -> Source | None:
    """Return a source that is given as itself or by its arguments; messages call it `argument`."""
    if given is None or isinstance(given, Source):
        return given
    names = [own.name for own in fields(Source)]
    if not isinstance(given, Mapping) or "path" not in given:
        raise UserError(
            f"`{argument}` must be a `Source`, or a mapping with its `path`, got {given!r}; write {{path: FILE}}."
        )
    if unknown := next((str(name) for name in given if name not in names), None):
        raise UserError(f"`{argument}.{unknown}` must be an argument of `Source`{did_you_mean(unknown, names)}.")
    return Source(**given)
