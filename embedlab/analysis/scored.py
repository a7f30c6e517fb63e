"""What finished runs predicted for the pairs of one set, read for looking at their errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedlab import runs
from embedlab.errors import UserError, did_you_mean
from embedlab.report.command import collect
from embedlab.report.rows import Group, Run, group_runs

__all__ = ["PairSet", "Scored", "read_scored"]

Array = NDArray[np.float64]
NUMBERS: Final = ("score", "label")
TEXTS: Final = ("first", "second")


@dataclass(frozen=True)
class PairSet:
    """The N pairs of a set.

    Attributes:
        name: Of the set, such as test/stsb.
        ids: Row of each pair in its source, ascending, (N,).
        first: N texts.
        second: N texts.
        gold: What people said, (N,).
        genres: N genres; empty texts where the source has none.
    """

    name: str
    ids: NDArray[np.int64]
    first: Sequence[str]
    second: Sequence[str]
    gold: Array
    genres: Sequence[str]

    def __len__(self) -> int:
        """Return N."""
        return len(self.first)


@dataclass(frozen=True)
class Scored:
    """What one strategy predicted, over its seeds.

    Attributes:
        label: What it is called in tables.
        folders: S run folders, one per seed.
        scores: (S, N), float64.
        query: Which text of a pair is the query: first or second.
    """

    label: str
    folders: Sequence[Path]
    scores: Array
    query: str


def read_scored(folders: Sequence[Path], only: str | None = None) -> tuple[PairSet, list[Scored], list[str]]:
    """Read the predictions of runs for one set.

    Args:
        folders: Folders of finished runs, or folders in which such lie. Runs that differ in their seed only are put together.
        only: Name of the set; None is the first test set.

    Returns:
        The pairs, what each strategy predicted in the order given, and what a reader must know.

    Raises:
        UserError: If a run is not finished or was not scored on the set, its predictions are missing, damaged or without
            the texts, the runs were scored on different pairs, or no run's scores can be ranked.
    """
    found, notes = _finished(folders)
    groups = group_runs(found)
    name = _set(found, only)
    pairs: PairSet | None = None
    strategies, unranked = [], []
    for label, group in zip(_labels(groups), groups, strict=True):
        notes += [f"{label}: {note}" for note in group.notes]
        scores, kept = [], []
        for folder, result in group.results:
            own, score = _read(folder, result, name)
            if pairs is not None and not _same(own, pairs):
                raise UserError(
                    f"`RUN` must name runs that were scored on the same pairs, but {runs.predictions_file(folder, name)} "
                    "holds others than the first; name runs on one set, or look at them one at a time."
                )
            pairs = own if pairs is None else pairs
            path = runs.predictions_file(folder, name)
            fault = _fault(score, path, "scores", "look at what the strategy makes of the pairs")
            if fault is not None:
                unranked.append(fault)
                notes.append(f"{label}: left out: {fault}")
                continue
            scores.append(score)
            kept.append(folder)
        query = str(((group.results[0][1].get("data") or {}).get(name) or {}).get("query") or "first")
        strategies += [Scored(label, kept, np.stack(scores), query)] if kept else []
    assert pairs is not None, "there is a finished run"
    if not strategies:
        raise UserError(f"{unranked[0]}.")
    return pairs, strategies, notes


def _finished(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Return the finished runs in folders, each once, and notes on those that are left out."""
    found: dict[Path, Run] = {}
    notes = []
    for folder in folders:
        try:
            inside = collect(folder)
        except UserError as error:
            raise UserError(str(error).replace("`RUNS`", "`RUN`").replace("must hold runs", "must be a run")) from error
        done = [run for run in inside if run.state == "done"]
        if not done:
            run = inside[0]
            reason = "" if run.error is None else f" ({run.error.rstrip('.').splitlines()[0]})"
            raise UserError(
                f"`RUN` must be finished, but that in {run.folder} is {run.state}{reason}; finish it with the command that "
                "began it."
            )
        found |= {run.folder.resolve(): run for run in done}
        notes += [f"left out, as not finished: {run.folder}" for run in inside if run.state != "done"]
    return list(found.values()), notes


def _set(found: Sequence[Run], only: str | None) -> str:
    """Return the key of the set to look at: the one that is asked for, or the first test set; every run must have it."""
    metrics: list[dict[str, Any]] = [(run.result or {})["metrics"] for run in found]
    there = [[name for name, own in sets.items() if "ndcg@10" not in own] for sets in metrics]  # of a search, no pairs
    shared = [name for name in there[0] if all(name in own for own in there)]
    names = [name.removeprefix("test/") for name in shared]
    if only is not None:
        if (name := next((own for own in (f"test/{only}", only) if own in shared), None)) is not None:
            return name
        which = "all of the runs were" if len(found) > 1 else "the run was"
        raise UserError(f"`--set` must name a set that {which} scored on, got {only!r}{did_you_mean(only, names)}.")
    if not shared:
        sets = ", ".join(sorted({name.removeprefix("test/") for own in there for name in own})) or "none"
        raise UserError(
            f"`RUN` must name runs that were scored on one set, got these sets: {sets}; test the runs on it."
        )
    return next((name for name in shared if name.startswith("test/")), shared[0])


def _labels(groups: Sequence[Group]) -> list[str]:
    """Return what strategies are called: by their label, with their study where that is not enough."""
    held = Counter(group.label for group in groups)
    return [group.label if held[group.label] == 1 else f"{group.study}/{group.label}" for group in groups]


def _read(folder: Path, result: Mapping[str, Any], name: str) -> tuple[PairSet, Array]:
    """Read the pairs of a set and their scores, (N,), in the order of their ids."""
    path = runs.predictions_file(folder, name)
    columns = _columns(path)
    order = np.argsort(columns["id"], kind="stable")
    told = (result["metrics"][name] or {}).get("pairs")
    if len(order) == 0 or (told is not None and told != len(order)):
        raise UserError(
            f"{path} must hold the {told or ''} pairs that {runs.RESULT} tells of, got {len(order)}; copy the whole folder."
        )
    scores, gold = (columns[own][order] for own in NUMBERS)
    if (fault := _fault(gold, path, "gold scores", "name a set that has them as --set")) is not None:
        raise UserError(f"{fault}.")
    texts = {own: [columns[own][i] for i in order] for own in (*TEXTS, "genre")}
    ids = columns["id"][order]
    return PairSet(name, ids, texts["first"], texts["second"], gold, texts["genre"]), scores


def _fault(values: Array, path: Path, what: str, way: str) -> str | None:
    """Say why numbers cannot be ranked; None where they can."""
    if not np.isfinite(values).all():
        return f"{path} must hold finite {what}, got {values[~np.isfinite(values)][0]} among them; {way}"
    if np.ptp(values) == 0:
        return f"{path} must hold {what} that tell pairs apart, but all {len(values)} are {values[0]:g}; {way}"
    return None


def _columns(path: Path) -> dict[str, Any]:
    """Read the columns of a file of predictions: numbers as arrays, texts as lists."""
    import pyarrow as pa
    from pyarrow import parquet

    if not path.is_file():
        raise UserError(
            f"`RUN` must hold its predictions, but {path} is missing; copy the whole folder, or run it again."
        )
    try:
        table = parquet.read_table(path)
        columns: dict[str, Any] = {"id": table["id"].to_numpy().astype(np.int64)}
        columns |= {name: table[name].to_numpy().astype(np.float64) for name in NUMBERS}
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} must be the predictions of a run, but it is damaged ({str(error).splitlines()[0]:.80}); copy the "
            "whole folder, or run it again."
        ) from error
    for name in (*TEXTS, "genre"):
        own = table[name].to_pylist() if name in table.column_names else None
        if name == "genre" and (own is None or not all(isinstance(text, str) for text in own)):
            own = [""] * table.num_rows  # genres are shown where they are known
        if own is None or not all(isinstance(text, str) for text in own):
            raise UserError(
                f"{path} must hold the texts of its pairs as `first` and `second`, but it lacks `{name}`; run it again with "
                "this version of embedlab, which keeps them."
            )
        columns[name] = own
    return columns


def _same(one: PairSet, other: PairSet) -> bool:
    return (
        np.array_equal(one.ids, other.ids)
        and np.array_equal(one.gold, other.gold)
        and (one.first, one.second) == (other.first, other.second)
    )
