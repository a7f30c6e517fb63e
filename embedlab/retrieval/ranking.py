"""A collection ranked by vectors: what `embedlab evaluate` measures, and what a run that searches is selected by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from embedlab.retrieval.corpus import Collection
from embedlab.retrieval.measures import DEPTH, as_run
from embedlab.retrieval.search import search

__all__ = ["rank"]


def rank(
    collection: Collection,
    query_vectors: Tensor | np.ndarray,
    document_vectors: Tensor | np.ndarray,
    depth: int = DEPTH,
) -> dict[str, list[tuple[str, float]]]:
    """Rank the documents of each query by cosine; empty documents are never found.

    Args:
        collection: What is searched.
        query_vectors: Of `collection.distinct_queries`, (Q, E).
        document_vectors: Of `collection.distinct_documents`, (N, E).
        depth: Documents ranked for a query.

    Returns:
        For each query ids of documents and their scores, best first, of equal ones the earlier of the corpus.
    """
    names = [own for own, text in collection.documents.items() if text]
    left_out, place = None, {own: number for number, own in enumerate(names)}
    if collection.same_id_left_out:
        left_out = [place.get(own, -1) for own in collection.queries]
    queries = _spread(query_vectors, collection.distinct_queries, list(collection.queries.values()))
    documents = _spread(document_vectors, collection.distinct_documents, [collection.documents[own] for own in names])
    return as_run(list(collection.queries), names, *search(queries, documents, depth, left_out=left_out))


def _spread(vectors: Tensor | np.ndarray, distinct: Sequence[str], texts: Sequence[str]) -> Tensor | np.ndarray:
    """Return the vector of each text, given those of the distinct ones."""
    if len(distinct) == len(texts):
        return vectors
    place = {text: number for number, text in enumerate(distinct)}
    return vectors[[place[text] for text in texts]]
