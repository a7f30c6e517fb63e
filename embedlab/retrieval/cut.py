"""A collection cut to a size that is quickly searched."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from embedlab.retrieval.bm25 import BM25
from embedlab.retrieval.corpus import Collection

__all__ = ["HARD", "cut"]

HARD: Final = 20  # documents of BM25 that a cut keeps for each query


def cut(collection: Collection, queries: int) -> Collection:
    """Keep the first queries, and of the documents those judged for them and the best of BM25 for each: a harder, quicker set.

    Scores on a cut are higher than on the whole and compare only with those on the same cut, which the name tells.
    """
    kept = dict(list(collection.queries.items())[:queries])
    judgements = {own: collection.judgements[own] for own in kept}
    names = list(collection.documents)
    _, places = BM25(collection.documents.values()).search(list(kept.values()), HARD)
    wanted = {names[place] for row in places for place in row if place >= 0} | {
        d for own in judgements.values() for d in own
    }
    documents = {own: text for own, text in collection.documents.items() if own in wanted}
    note = (
        f"a cut: {len(kept)} of {len(collection.queries)} queries, {len(documents)} of {len(collection.documents)} documents "
        f"(judged, and BM25's best {HARD} of each query)"
    )
    name = f"{collection.name}-cut-{queries}"
    return replace(
        collection, name=name, documents=documents, queries=kept, judgements=judgements, notes=[*collection.notes, note]
    )
