"""What `embedlab evaluate` left in run folders, as tables: one for each retrieval set, and averages over the sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from embedlab import runs
from embedlab.errors import UserError
from embedlab.report import statistics
from embedlab.report.render import Sheet, duration, over_seeds
from embedlab.report.rows import Group

__all__ = ["BASELINE", "BASELINES", "FOLDER", "Found", "found_in", "tables", "validated", "was_searched"]

FOLDER: Final = "retrieval"  # in a run folder
BASELINES: Final = ".retrieval"  # in the folder of a study
BASELINE: Final = "bm25"
MEASURES: Final = {"ndcg@10": "nDCG@10", "mrr@10": "MRR@10", "recall@100": "Recall@100", "map": "MAP"}
DEPTH: Final = 1000  # that `evaluate` ranks unless told otherwise
TELLS: Final = (
    "Retrieval x 100: mean and standard deviation over seeds; 95 % interval of nDCG@10 by bootstrap over queries. Time: "
    "mean over seeds, encoding the corpus or the first stage included."
)
SELECTED: Final = "Search x 100: mean and standard deviation over seeds, on the cut by which epochs are selected."


@dataclass(frozen=True)
class Found:
    """What one ranking of one set is worth.

    Attributes:
        name: Of the set.
        split: Whose judgements.
        sha256: Hash of its content.
        size: Queries and documents.
        depth: Documents ranked for a query.
        first: What ranked the whole corpus, where it was not the run itself: BM25, or another run.
        top_k: How many were ranked again; None for none.
        mean: Measures on average.
        per_query: nDCG@10 of each query.
        seconds: That it took, first stage included.
    """

    name: str
    split: str
    sha256: str
    size: tuple[int, int]
    depth: int
    first: str | None
    top_k: int | None
    mean: Mapping[str, float]
    per_query: Mapping[str, float]
    seconds: float

    @property
    def is_baseline(self) -> bool:
        """Whether BM25 ranked it, and nothing else."""
        return self.first == BASELINE and self.top_k is None

    @property
    def how(self) -> str:
        """What a row says of it behind its label."""
        again = f" (best {self.top_k} of {self.first})" if self.top_k is not None else ""
        return again + (f" ({self.depth} deep)" if self.depth != DEPTH else "")


def found_in(folder: Path) -> list[Found]:
    """Read what `evaluate` left in a folder; what is damaged is passed over, as measuring again makes it anew."""
    found = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            content = runs.read_json(path)
            found += [] if content is None else list(_read(content))
        except (UserError, KeyError, TypeError, ValueError, AttributeError, IndexError):
            continue
    return found


def _read(content: Mapping[str, Any]) -> Iterator[Found]:
    """Give what a file says of the run it belongs to, then of BM25 where that was the first stage."""
    first, second = str(content["ranked_by"][0]), content["reranked_by"][0]
    seconds = {key: float(value) for key, value in content["seconds"].items()}
    if second is not None:
        key, top_k = f"{second} over {first}", int(content["top_k"])
        yield _of(content, key, first, top_k, seconds["search"] + seconds["rerank"])
    if second is None or first == BASELINE:
        yield _of(content, first, BASELINE if first == BASELINE else None, None, seconds["search"])


def _of(content: Mapping[str, Any], key: str, first: str | None, top_k: int | None, seconds: float) -> Found:
    own = content["collection"]
    return Found(
        name=str(own["name"]),
        split=str(own["split"]),
        sha256=str(own["sha256"]),
        size=(int(own["queries"]), int(own["documents"])),
        depth=int(content["depth"]),
        first=first,
        top_k=top_k,
        mean={name: float(content["results"][key][name]) for name in MEASURES},
        per_query={str(query): float(value) for query, value in content["per_query"][key]["ndcg@10"].items()},
        seconds=seconds,
    )


@dataclass(frozen=True)
class _Row:
    """A strategy on a set, over seeds."""

    label: str
    study: str
    seeds: tuple[int, int]
    found: Sequence[Found]

    @property
    def key(self) -> tuple[str, str]:
        return self.study, self.label

    def over_seeds(self, name: str) -> tuple[float, float | None]:
        return statistics.mean_and_sd([own.mean[name] for own in self.found])

    @property
    def seconds(self) -> float:
        return sum(own.seconds for own in self.found) / len(self.found)

    def interval(self, resamples: int) -> statistics.Interval | None:
        queries = self.found[0].per_query
        if not resamples or any(set(own.per_query) != set(queries) for own in self.found):
            return None
        values = np.array([[own.per_query[query] for query in queries] for own in self.found])
        return statistics.mean_interval(values, resamples)


def tables(groups: Sequence[Group], resamples: int, with_study: bool) -> list[Sheet]:
    """Return a table for each set that a run was measured on, and one of averages where there are several.

    Args:
        groups: The rows of a report.
        resamples: Of the bootstrap over queries; 0 leaves intervals out.
        with_study: Whether the study must be told.
    """
    sets: dict[tuple[str, str, str], dict[tuple[str, str], _Row]] = {}
    for row, own in _rows(groups):
        sets.setdefault((own.name, own.split, own.sha256), {})[row.key] = row
    shown = []
    for (name, split, sha256), rows in sets.items():
        alone = sum(other[:2] == (name, split) for other in sets) == 1
        queries, documents = next(iter(rows.values())).found[0].size
        content = "" if alone else f", sha256 {sha256[:8]}"
        title = f"{name} {split} ({queries} queries, {documents} documents{content})"
        shown.append(_table(title, list(rows.values()), resamples, with_study))
        missing = [own.label for own in groups if not any(_is_of(key, own) for key in rows)]
        if missing:
            shown[-1] = replace(shown[-1], title=f"{title}; not measured: {', '.join(missing)}")
    shown += [_averages(list(sets.values()), with_study)] if len(sets) > 1 else []
    return [*shown[:-1], replace(shown[-1], remarks=[TELLS])] if shown else []


def was_searched(group: Group, name: str) -> bool:
    """Tell whether the runs of a row searched a set, by which they were selected, and scored no pairs of it."""
    return any("ndcg@10" in (result["metrics"].get(name) or {}) for _, result in group.results)


def validated(groups: Sequence[Group], name: str, with_study: bool) -> list[Sheet]:
    """Return a table of rows that were selected by search, for each collection that they searched.

    Args:
        groups: Those rows.
        name: Of the set: validation.
        with_study: Whether the study must be told.
    """
    sets: dict[tuple[Any, ...], list[tuple[float, list[str]]]] = {}
    for group in groups:
        results = [result for _, result in group.results if name in result["metrics"]]
        metrics, held = [own["metrics"][name] for own in results], (results[0].get("data") or {}).get(name) or {}
        values = [statistics.mean_and_sd([own[measure] for own in metrics]) for measure in MEASURES]
        seeds = str(len(results)) if len(results) == group.planned else f"{len(results)} of {group.planned}"
        named = [group.study, group.label] if with_study else [group.label]
        key = tuple(held.get(own) for own in ("path", "split", "rows", "documents", "sha256"))
        sets.setdefault(key, []).append((-values[0][0], [*named, seeds, *map(over_seeds, values)]))
    return [
        Sheet(
            f"{name}, a search ({queries} queries over {documents} documents of {path} {split})",
            [*_names(with_study), "Seeds", *MEASURES.values()],
            [cells for _, cells in sorted(rows)],
            [SELECTED],
        )
        for (path, split, queries, documents, _), rows in sets.items()
    ]


def _is_of(key: tuple[str, str], group: Group) -> bool:
    return key[0] == group.study and (key[1] == group.label or key[1].startswith(f"{group.label} ("))


def _set_of(own: Found) -> tuple[str, ...]:
    return own.name, own.split, own.sha256


def _rows(groups: Sequence[Group]) -> Iterator[tuple[_Row, Found]]:
    """Give each row with what tells its set."""
    baselines: dict[tuple[str, ...], Found] = {}
    measured: set[tuple[str, ...]] = set()
    for group in groups:
        ways: dict[tuple[str, ...], list[Found]] = {}
        for folder, _ in group.results:
            here: set[tuple[str, ...]] = set()
            for own in found_in(folder / FOLDER):
                if own.is_baseline:
                    baselines.setdefault((group.study, *_set_of(own)), own)
                elif (key := (*_set_of(own), own.how)) not in here:
                    here.add(key)
                    ways.setdefault(key, []).append(own)
            for own in found_in(folder.parent.parent / BASELINES):
                baselines[(group.study, *_set_of(own))] = own
        for (*own_set, how), found in ways.items():
            measured.add(tuple(own_set))
            yield _Row(group.label + how, group.study, (len(found), group.planned), found), found[0]
    for (study, *own_set), own in baselines.items():
        if tuple(own_set) in measured:  # of a set that has changed since, BM25 alone says nothing
            yield _Row(BASELINE, study, (1, 1), [own]), own


def _table(title: str, rows: Sequence[_Row], resamples: int, with_study: bool) -> Sheet:
    """Draw a set up, best first."""
    lines = []
    for row in sorted(rows, key=lambda own: (-own.over_seeds("ndcg@10")[0], own.label)):
        interval, (there, planned) = row.interval(resamples), row.seeds
        shown = "-" if interval is None else f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
        values = [over_seeds(row.over_seeds(name)) for name in MEASURES]
        seeds = str(there) if there == planned else f"{there} of {planned}"
        lines.append([*_named(row, with_study), seeds, values[0], shown, *values[1:], duration(row.seconds)])
    first, *others = MEASURES.values()
    return Sheet(title, [*_names(with_study), "Seeds", first, "95 % interval", *others, "Time"], lines)


def _averages(sets: Sequence[Mapping[tuple[str, str], _Row]], with_study: bool) -> Sheet:
    """Average over the sets; a row that lacks one has no average, as it would be over other sets."""
    whole: list[tuple[float, list[str]]] = []
    for key in dict.fromkeys(key for rows in sets for key in rows):
        own = [rows[key] for rows in sets if key in rows]
        means = [_mean(row.over_seeds(name)[0] for row in own) for name in MEASURES]
        complete = len(own) == len(sets)
        cells = [f"{100 * mean:.2f}" if complete else "-" for mean in means]
        took = duration(sum(row.seconds for row in own))
        line = [*_named(own[0], with_study), f"{len(own)} of {len(sets)}", *cells, took]
        whole.append((means[0] if complete else -1.0, line))
    lines = [line for _, line in sorted(whole, key=lambda own: (-own[0], own[1]))]
    title = f"average over {len(sets)} retrieval sets"
    return Sheet(title, [*_names(with_study), "Sets", *MEASURES.values(), "Time"], lines)


def _mean(values: Iterable[float]) -> float:
    several = list(values)
    return sum(several) / len(several)


def _names(with_study: bool) -> list[str]:
    return ["Study", "Strategy"] if with_study else ["Strategy"]


def _named(row: _Row, with_study: bool) -> list[str]:
    return [row.study, row.label] if with_study else [row.label]
