"""Batches in which no text comes twice, as far as the rows allow it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Final, final

__all__ = ["as_compared", "batches_apart", "shared_texts"]

VAIN: Final = 1000  # rows that are tried with every batch in vain before the rest stays where it is


def as_compared(text: str) -> str:
    """Return what two texts must share to count as one: neither case nor blanks around them matter (SGPT's loader).

    >>> as_compared(" A dog runs. ")
    'a dog runs.'
    """
    return text.strip().lower()


def shared_texts(rows: Sequence[Sequence[str]]) -> list[tuple[int, ...]]:
    """Number the texts that several rows hold, as they are compared; give those of each row.

    >>> shared_texts([["a", "b"], ["B", "c"], ["d", "d"], ["c ", "b"]])
    [(0,), (0, 1), (), (1, 0)]
    """
    distinct = [dict.fromkeys(map(as_compared, own)) for own in rows]
    count = Counter(text for own in distinct for text in own)
    numbers: dict[str, int] = {}
    return [tuple(numbers.setdefault(text, len(numbers)) for text in own if count[text] > 1) for own in distinct]


def batches_apart(order: Sequence[int], texts: Sequence[Sequence[int]], sizes: Sequence[int]) -> list[list[int]]:
    """Cut rows into batches in which, where that can be reached by exchanging rows, no two share a text.

    Batches are slices of the order. A row that shares a text with its batch changes places with a row of the next batch
    where neither then shares one; if there is none, with a row that no batch holds. So the order stays as it is where rows
    share nothing, and what cannot be avoided stays as evenly spread as it was.

    Args:
        order: Row numbers.
        texts: For every row, numbers of the texts that other rows hold too.
        sizes: Rows of each batch; their sum is at most the number of rows.

    Returns:
        Row numbers of each batch.

    >>> batches_apart([0, 1, 2, 3], [(), (), (), ()], [2, 2])
    [[0, 1], [2, 3]]
    >>> batches_apart([0, 1, 2, 3], [(7,), (7,), (), ()], [2, 2])
    [[2, 1], [0, 3]]
    >>> batches_apart([0, 1, 2], [(7,), (7,), ()], [2])  # row 0 is left out instead of row 2
    [[2, 1]]
    >>> batches_apart([0, 1, 2, 3], [(7,), (7,), (7,), ()], [2, 2])  # in two batches, three rows cannot be kept apart
    [[0, 1], [2, 3]]
    """
    ends = list(accumulate(sizes))
    batches = [list(order[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
    plan = _Plan(batches, list(order[sum(sizes) :]), texts)
    for batch, rows in enumerate(batches):
        for place in range(len(rows)):
            if plan.clashes(batch, place):
                plan.exchange(batch, place)
    return batches


@final
class _Plan:
    """Batches between which rows are exchanged, in place.

    Args:
        batches: Row numbers of each batch.
        spare: Rows of no batch.
        texts: For every row, numbers of texts.
    """

    def __init__(self, batches: list[list[int]], spare: list[int], texts: Sequence[Sequence[int]]) -> None:
        self.batches, self.spare, self.texts = batches, spare, texts
        self.inside = [Counter(text for row in own for text in texts[row]) for own in batches]  # a text's rows by batch
        self.holders = Counter(text for own in self.inside for text in own)  # a text's batches
        self.vain = 0

    def clashes(self, batch: int, place: int) -> bool:
        """Tell whether a row shares a text with another of its batch."""
        return any(self.inside[batch][text] > 1 for text in self.texts[self.batches[batch][place]])

    def exchange(self, batch: int, place: int) -> None:
        """Let a row change places with one of another batch, or of none, so that neither clashes, if there is one."""
        row = self.batches[batch][place]
        number = len(self.batches)
        if self.vain < VAIN and all(self.holders[text] < number for text in self.texts[row]):
            for other in (own % number for own in range(batch + 1, batch + number)):
                if self.inside[other].keys().isdisjoint(self.texts[row]):
                    found = self._fitting(self.batches[other], batch)
                    if found is not None:
                        self._put(self.batches[other][found], batch, place)
                        self._put(row, other, found)
                        return
            self.vain += 1
        found = self._fitting(self.spare, batch)
        if found is not None:
            incoming, self.spare[found] = self.spare[found], row
            self._put(incoming, batch, place)

    def _fitting(self, rows: Sequence[int], batch: int) -> int | None:
        """Return the place of the first of some rows that shares no text with a batch, or None."""
        held = self.inside[batch].keys()
        return next((place for place, row in enumerate(rows) if held.isdisjoint(self.texts[row])), None)

    def _put(self, row: int, batch: int, place: int) -> None:
        """Put a row in the place of another."""
        inside = self.inside[batch]
        for text in self.texts[self.batches[batch][place]]:
            inside[text] -= 1
            if not inside[text]:
                del inside[text]
                self.holders[text] -= 1
        for text in self.texts[row]:
            self.holders[text] += not inside[text]
            inside[text] += 1
        self.batches[batch][place] = row
