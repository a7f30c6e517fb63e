"""What rows of a source are refused, and what a leak filter may not leave."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from embedlab.data.leaks import LeakFilter, leave_out
from embedlab.data.sources import Rows, Source
from embedlab.errors import UserError

__all__ = ["check", "filtered", "refuse_equal_rows"]


def refuse_equal_rows(others: dict[str, Source], source: Source, argument: str) -> None:
    """Refuse what was meant as two splits of one file, and is the same rows twice."""
    for other, own in others.items():
        if own.part != source.part and replace(own, split=source.split) == source:
            if Path(source.path).expanduser().is_file():
                raise UserError(
                    f"`{argument}` must hold other rows than `data.{other.replace('/', '.')}`, got the same rows of "
                    f"{source.path} for both, as a file has no splits; choose rows by `where`, name another file, or, if "
                    "that is meant, give both the same `split`."
                )


def filtered(train: Rows, evaluated: dict[str, Rows], leak_filter: LeakFilter) -> tuple[Rows, str]:
    """Leave training rows out, with a note; refuse a filter that has nothing to go by, or leaves nothing."""
    if not evaluated:
        raise UserError(
            f"`data.leak_filter` must be none without validation and test sets, got {leak_filter}; name a set."
        )
    rows, note = leave_out(train, evaluated, leak_filter)
    if not len(rows):
        raise UserError(
            f"`data.leak_filter` must leave training rows, but {note.replace(' left out, as', ' go, as', 1)}; take a weaker "
            "filter, or other data."
        )
    return rows, note


def check(name: str, rows: Rows, source: Source, argument: str) -> None:
    """Refuse rows of a kind that cannot be trained on, or scored."""
    needed = {"train": "scored pairs, triplets or texts", "predict": "pairs"}.get(name, "scored pairs")
    if rows.kind == "pairs" and rows.score is None and name != "predict":
        raise UserError(
            f"`{argument}` must hold {needed}, got pairs without scores of {source.path}; name their column, as in "
            "`columns: {first: A, second: B, score: C}`."
        )
    if rows.kind != "pairs" and name != "train":
        raise UserError(f"`{argument}` must hold {needed}, got {rows.kind} of {source.path}; name other columns.")
    if name not in ("train", "predict") and len(set(rows.score or ())) < 2:
        raise UserError(
            f"`{argument}` must hold pairs of two different scores at least, or no correlation with them is defined, got "
            f"{len(rows)} of the same in {source.path}; give other rows, or score them as `data.predict`."
        )
