"""nDCG@10, MRR@10, recall@100 and MAP of ranked lists, per query and on average, by `ir-measures`.

The tools below sort a list once more, by score in 32 bits, and break ties by document id. What is measured here is the order
that is handed in: each place gets a score of its own, so nothing is left to sort. Gains are linear, grades of 0 and less are
not relevant, a judged query without an answer counts 0, and so does one without a relevant document.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import ir_measures
from ir_measures import AP, RR, R, nDCG

from embedlab.errors import UserError

__all__ = ["DEPTH", "MEASURES", "Judgements", "Measured", "Run", "as_run", "measure"]

Run = Mapping[str, Sequence[tuple[str, float]]]  # for each query documents and scores, best first
Judgements = Mapping[str, Mapping[str, int]]
DEPTH: Final = 1000  # of the lists that are measured, unless told otherwise; MAP depends on it
MEASURES: Final = {"ndcg@10": nDCG @ 10, "mrr@10": RR @ 10, "recall@100": R @ 100, "map": AP}
HIGHEST: Final = 1_000_000
# trec_eval's own code, and MS MARCO's for the one that trec_eval lacks; not what else happens to be installed.
TOOLS: Final[Any] = ir_measures.providers.FallbackProvider([ir_measures.pytrec_eval, ir_measures.msmarco])  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Measured:
    """How good ranked lists are.

    Attributes:
        mean: Average over all judged queries, by measure, 0 to 1.
        per_query: For each measure the value of each judged query.
        depth: Length of the longest list; MAP depends on it.
        unanswered: Queries whose list is empty; they count 0.
        without_relevant: Queries without a relevant document; they count 0.
    """

    mean: dict[str, float]
    per_query: dict[str, dict[str, float]]
    depth: int
    unanswered: int
    without_relevant: int

    def record(self) -> dict[str, Any]:
        """Return what a run's record says, as plain types; values of queries apart."""
        return {
            **self.mean,
            "queries": len(self.per_query["map"]),
            "depth": self.depth,
            "unanswered": self.unanswered,
            "without_relevant": self.without_relevant,
            "ties": "the earlier document of the corpus first",
        }


def as_run(
    query_ids: Sequence[str], document_ids: Sequence[str], scores: Any, indices: Any
) -> dict[str, list[tuple[str, float]]]:
    """Name what a search found.

    Args:
        query_ids: Ids of Q queries.
        document_ids: Ids of N documents, in the order that was searched.
        scores: Scores of the K best documents, best first, (Q, K); an array or a tensor.
        indices: Their positions in `document_ids`, (Q, K); -1 where there is none.

    Returns:
        For each query its documents and their scores, best first.
    """
    if len(scores) != len(query_ids) or len(indices) != len(query_ids):
        raise UserError(
            f"`query_ids` must name each row of `scores` and `indices`, got {len(query_ids)} for {len(scores)} and "
            f"{len(indices)}; hand over the queries that were searched."
        )
    rows = zip(query_ids, indices.tolist(), scores.tolist(), strict=True)
    return {
        query: [(document_ids[place], score) for place, score in zip(places, own, strict=True) if place >= 0]
        for query, places, own in rows
    }


def measure(run: Run, judgements: Judgements) -> Measured:
    """Measure ranked lists.

    Args:
        run: For each query documents and scores, best first; what is missing counts as an empty list.
        judgements: For each query the grade of each judged document.

    Returns:
        Every measure for every judged query, and on average.

    Raises:
        UserError: If there are no judgements or too high ones, a query of `run` has none, or a list repeats a document or is
            not sorted.

    >>> measure({"q": [("b", 2.0), ("a", 1.0)]}, {"q": {"a": 1}}).mean["mrr@10"]
    0.5
    """
    if not judgements:
        raise UserError("`judgements` must hold a query, got none; read a split that has some.")
    for query, ranked in run.items():
        _check(query, ranked, judgements)
    grades, placed = _handed_over(run, judgements)
    values = {name: dict.fromkeys(judgements, 0.0) for name in MEASURES}
    if placed:
        queries, names = list(judgements), {own: name for name, own in MEASURES.items()}
        for found in TOOLS.evaluator(list(MEASURES.values()), grades).iter_calc(placed):
            values[names[found.measure]][queries[int(found.query_id)]] = float(found.value)
    return Measured(
        mean={name: math.fsum(own.values()) / len(own) for name, own in values.items()},
        per_query=values,
        depth=max(map(len, run.values()), default=0),
        unanswered=len(judgements) - len(placed),
        without_relevant=sum(not any(own.values()) for own in grades.values()),
    )


def _handed_over(run: Run, judgements: Judgements) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, float]]]:
    """Return grades, and a score for each place of a list, by numbers in place of ids.

    The tools end an id at a zero byte, give grades below 0 meanings of their own (a query that has no others ends the
    process), and take memory for each grade up to the highest.
    """
    grades: dict[str, dict[str, int]] = {}
    placed: dict[str, dict[str, float]] = {}
    for query, (own, judged) in enumerate(judgements.items()):
        if (highest := max(judged.values(), default=0)) > HIGHEST:
            raise UserError(
                f"`judgements` must hold grades up to {HIGHEST}, got {highest} for query {own!r}; scale them down."
            )
        names: dict[str, str] = {}
        for document in (*judged, *(document for document, _ in run.get(own, ()))):
            names.setdefault(document, str(len(names)))
        grades[str(query)] = {names[document]: max(grade, 0) for document, grade in judged.items()}
        if ranked := run.get(own):
            scores = range(len(ranked), 0, -1)
            placed[str(query)] = {
                names[document]: float(score) for (document, _), score in zip(ranked, scores, strict=True)
            }
    return grades, placed


def _check(query: str, ranked: Sequence[tuple[str, float]], judgements: Judgements) -> None:
    """Refuse a list that cannot be measured."""
    if query not in judgements:
        raise UserError(f"`run` must hold judged queries, got {query!r}, which has no judgement; leave it out.")
    seen: set[str] = set()
    before = math.inf
    for document, score in ranked:
        if document in seen:
            raise UserError(
                f"`run` must name a document once a query, got {document!r} twice for {query!r}; keep the first."
            )
        if not score <= before:
            raise UserError(
                f"`run` must rank the best document first, got {score} after {before} for query {query!r}; sort it by score."
            )
        seen.add(document)
        before = score
