"""BM25, the baseline of retrieval and the source of hard negatives, by `bm25s`.

Robertson and Zaragoza, 2009. The Probabilistic Relevance Framework: BM25 and Beyond; in Lucene's form (Kamphuis et al., 2020.
Which BM25 Do You Mean?): of a query's words w, repeated ones counted again,

    score = sum_w log(1 + (N - N_w + 0.5) / (N_w + 0.5)) * count_w / (count_w + k1 * (1 - b + b * length / mean length))

k1 and b are Anserini's, the stop words Lucene's; words are runs of letters and digits, of one letter too as in Lucene, in lower
case; title and text are one field. Nothing is stemmed: nDCG@10 on SciFact's test split is then 0.663, beside 0.665 in BEIR's
table. `stem` takes PyStemmer's `Stemmer("english").stemWords`, with which it is 0.680.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import bm25s
import numpy as np
from bm25s.stopwords import STOPWORDS_EN

from embedlab.errors import UserError

__all__ = ["BM25", "mine"]

WORD: Final = re.compile(r"\w+")
logging.getLogger("bm25s").setLevel(logging.ERROR)  # it tells of every index that is built
STOP_WORDS: Final = frozenset(STOPWORDS_EN)


class BM25:
    """An index of N texts.

    Args:
        texts: The corpus, (N,).
        k1: How soon a word that is repeated counts no more; 0 or more.
        b: How much long texts are held against their length; 0 to 1.
        stem: Returns the stems of words; None leaves words as they are.
    """

    def __init__(
        self,
        texts: Iterable[str],
        k1: float = 0.9,
        b: float = 0.4,
        stem: Callable[[list[str]], list[str]] | None = None,
    ) -> None:
        if not 0 <= k1 < float("inf"):
            raise UserError(f"`k1` must be 0 or more, got {k1}; 0.9 is usual.")
        if not 0 <= b <= 1:
            raise UserError(f"`b` must lie in 0 to 1, got {b}; 0.4 is usual.")
        self.stem = stem
        self.vocabulary: dict[str, int] = {}
        documents = [
            [self.vocabulary.setdefault(word, len(self.vocabulary)) for word in self.words(text)] for text in texts
        ]
        if not documents:
            raise UserError("`texts` must hold at least one text, got none; give a corpus.")
        if not self.vocabulary:
            raise UserError(
                f"`texts` must hold a word that is no stop word, got none in {len(documents)}; give a corpus."
            )
        self.size = len(documents)
        self.index = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy")
        self.index.index((documents, dict(self.vocabulary)), create_empty_token=False, show_progress=False)

    def words(self, text: str) -> list[str]:
        """Return the words of a text that are indexed, in order."""
        words = [word for word in WORD.findall(text.lower()) if word not in STOP_WORDS]
        return words if self.stem is None else self.stem(words)

    def scores(self, query: str) -> np.ndarray:
        """Return the score of each text for a query, (N,), float32; 0 where they share no word."""
        known = [self.vocabulary[word] for word in self.words(query) if word in self.vocabulary]
        if not known:
            return np.zeros(self.size, dtype=np.float32)
        return np.asarray(self.index.get_scores_from_ids(known), dtype=np.float32)

    def search(
        self, queries: Sequence[str], top_k: int, left_out: Sequence[int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the best texts of each query; of equal scores the earlier text comes first.

        Args:
            queries: (Q,).
            top_k: How many texts to return for a query.
            left_out: For each query the position of a text that is no answer to it, -1 for none, (Q,).

        Returns:
            Scores (Q, K), float32, best first, and positions (Q, K), int64, K the smaller of `top_k` and N. A text that shares no
            word with the query is no answer: the rest of a row has score -inf and position -1.
        """
        if top_k < 1:
            raise UserError(f"`top_k` must be at least 1, got {top_k}; raise it.")
        if left_out is not None and len(left_out) != len(queries):
            raise UserError(
                f"`left_out` must hold a position for each of {len(queries)} queries, got {len(left_out)}; "
                "write -1 where none is left out."
            )
        width = min(top_k, self.size)
        scores = np.full((len(queries), width), -np.inf, dtype=np.float32)
        positions = np.full((len(queries), width), -1, dtype=np.int64)
        for row, query in enumerate(queries):
            own = self.scores(query)
            if left_out is not None and left_out[row] >= 0:
                own[left_out[row]] = 0.0
            found = _best(own, width)
            scores[row, : len(found)], positions[row, : len(found)] = own[found], found
        return scores, positions


def _best(scores: np.ndarray, number: int) -> np.ndarray:
    """Return the positions of the highest scores above 0, best first, the earlier of equal ones first."""
    found = np.flatnonzero(scores > 0)
    if len(found) > number:
        lowest = np.partition(scores[found], -number)[-number]
        found = found[scores[found] >= lowest]
    return found[np.argsort(-scores[found], kind="stable")][:number]


def mine(
    queries: Sequence[str],
    positives: Sequence[Sequence[str]],
    corpus: Sequence[str],
    number: int,
    skip: int = 0,
    index: BM25 | None = None,
) -> list[list[int]]:
    """Find hard negatives: texts that BM25 takes for answers although they are not known to be.

    A text equal to the query, to one of its positives or to a negative found before, but for white space and case, is none.
    Of queries that are equal in that sense, each has the positives of all.

    Args:
        queries: (Q,).
        positives: For each query all texts that are known to answer it, (Q,) of any number.
        corpus: Where negatives come from, (N,).
        number: How many to return for a query.
        skip: How many of the best to pass over, as these may be answers that nobody judged.
        index: BM25 of `corpus`, if there is one already.

    Returns:
        For each query positions in `corpus`, best first; fewer than `number` where no more texts share a word with it.
    """
    if number < 1 or skip < 0:
        raise UserError(f"`number` must be at least 1 and `skip` at least 0, got {number} and {skip}; raise them.")
    if len(positives) != len(queries):
        raise UserError(
            f"`positives` must hold the texts of each of {len(queries)} queries, got {len(positives)}; write [] for none."
        )
    if any(isinstance(own, str) for own in positives):
        raise UserError("`positives` must hold a list of texts for each query, got a string; put it into a list.")
    index = BM25(corpus) if index is None else index
    if index.size != len(corpus):
        raise UserError(f"`index` must be of `corpus`, got {index.size} texts for {len(corpus)}; index it anew.")
    answers: dict[str, set[str]] = {}
    for query, own in zip(queries, positives, strict=True):
        answers.setdefault(_plain(query), {_plain(query)}).update(map(_plain, own))
    found = []
    for query in queries:
        barred = answers[_plain(query)]
        scores = index.scores(query)
        depth, negatives = number + skip + len(barred), list[int]()
        while True:
            ranked = _best(scores, depth)
            distinct: dict[str, int] = {}
            for position in ranked.tolist():
                if (text := _plain(corpus[position])) not in barred:
                    distinct.setdefault(text, position)
            negatives = list(distinct.values())[skip : skip + number]
            if len(negatives) == number or len(ranked) < depth:
                break
            depth *= 2
        found.append(negatives)
    return found


def _plain(text: str) -> str:
    """Return a text without what does not tell two texts apart."""
    return " ".join(text.split()).casefold()
