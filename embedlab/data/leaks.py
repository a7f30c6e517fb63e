"""Training rows that hold what is evaluated: found, told by pair, and left out where that is asked for.

Texts count as the same if their letters and digits are, whatever their case (lower-cased, only letters and digits). Of triplets,
the anchor makes a pair with each other text of its row; plain texts make none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal

from embedlab.data.near_duplicates import near_duplicates, words
from embedlab.data.sources import Rows

__all__ = ["NEAR", "LeakFilter", "leave_out", "normalised", "overlap", "row_texts", "selected_on"]

LeakFilter = Literal["none", "pair", "sentence", "near_dup", "component"]
NEAR: Final = 0.7  # Jaccard similarity of near-duplicates
CHANCE: Final = 0.01  # share of validation rows that may be test rows: 2 of the 1,500 of the STS Benchmark are
Texts = Sequence[Sequence[str]]  # of each row


def normalised(text: str) -> str:
    """Lower-case a text and keep its letters and digits, of any script; one without any stays as it is.

    >>> normalised("A man's  dog."), normalised("?!")
    ('amansdog', '?!')
    """
    return "".join(words(text)) or text


def row_texts(rows: Rows) -> list[list[str]]:
    """Return the texts of each row, in the order of their roles."""
    return [[text for own in row for text in own] for row in zip(*rows.texts.values(), strict=True)]


def overlap(evaluated: Rows, train: Rows) -> list[str]:
    """Tell for each row that is evaluated what training rows hold of it.

    Returns:
        "pair" where one holds the same pair, in either order; "sentence" where one holds a text of it; else "none".
    """
    rows = _normalised(evaluated)
    wanted = {text for row in rows for text in row}
    wanted_pairs = {pair for row in rows for pair in _pairs(row)}
    texts, pairs = set[str](), set[tuple[str, str]]()
    for row in _normalised(train):  # only what is wanted is kept, as training sets are large
        texts.update(wanted.intersection(row))
        pairs.update(wanted_pairs.intersection(_pairs(row)))
    return [
        "pair" if pairs.intersection(_pairs(row)) else "sentence" if texts.intersection(row) else "none" for row in rows
    ]


def selected_on(validation: Rows, tests: Mapping[str, Rows]) -> list[str]:
    """Tell of test sets that hold more than a hundredth of the validation rows: the same two texts and the same score.

    Args:
        validation: Scored pairs that decide which epoch is kept.
        tests: Scored pairs by the name of their set.

    Returns:
        A note for each such set.
    """
    notes = []
    for name, test in tests.items():
        held = {*_scored_pairs(test)}
        shared = sum(row in held for row in _scored_pairs(validation))
        if shared > CHANCE * len(validation):
            part = "" if shared == len(validation) else f" ({shared} of {len(validation)} validation rows)"
            notes.append(f"selected on test data of {name}{part}: optimistic, not to be compared")
    return notes


def leave_out(train: Rows, evaluated: Mapping[str, Rows], leak_filter: LeakFilter) -> tuple[Rows, str]:
    """Leave training rows out that hold what is evaluated, and never a row that is evaluated.

    Args:
        train: Pairs, triplets or texts.
        evaluated: Rows by what they are called in the note.
        leak_filter: What is left out, not `none`: `pair` rows that hold an evaluated pair, in either order; `sentence` rows
            that hold an evaluated text; `near_dup` these, and rows with a text of which an evaluated one is a near-duplicate
            (Jaccard similarity of character 5-grams of at least 0.7); `component` all rows that a chain of shared texts
            connects with an evaluated row.

    Returns:
        What is left, which may be nothing, and a note of how much that is not.
    """
    leaks, reason = _LEAKS[leak_filter]
    held = [row for rows in evaluated.values() for row in row_texts(rows)]
    kept = [number for number, leaked in enumerate(leaks(row_texts(train), held)) if not leaked]
    note = (
        f"{len(train) - len(kept)} of {len(train)} training rows left out, as they {reason} {' or '.join(evaluated)} rows "
        f"(leak_filter {leak_filter})"
    )
    if len(kept) == len(train):
        return train, note
    left = replace(
        train,
        texts={role: [own[number] for number in kept] for role, own in train.texts.items()},
        score=None if train.score is None else [train.score[number] for number in kept],
        meta={name: [own[number] for number in kept] for name, own in train.meta.items()},
    )
    return left, note


def _normalised(rows: Rows) -> list[list[str]]:
    return [[normalised(text) for text in row] for row in row_texts(rows)]


def _scored_pairs(rows: Rows) -> Iterator[tuple[frozenset[str], float]]:
    """Give both texts of each pair, in no order, with its score, rounded as files scale their scores."""
    for texts, score in zip(row_texts(rows), rows.score or (), strict=True):
        yield frozenset(texts), round(score, 6)


def _pairs(row: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Give the first text of a row with each other one, in alphabetical order."""
    return ((row[0], other) if row[0] <= other else (other, row[0]) for other in row[1:])


def _pair(train: Texts, held: Texts) -> list[bool]:
    wanted = {pair for row in held for pair in _pairs([normalised(text) for text in row])}
    return [not wanted.isdisjoint(_pairs([normalised(text) for text in row])) for row in train]


def _sentence(train: Texts, held: Texts) -> list[bool]:
    wanted = {normalised(text) for row in held for text in row}
    return [any(normalised(text) in wanted for text in row) for row in train]


def _near_dup(train: Texts, held: Texts) -> list[bool]:
    own = list(dict.fromkeys(text for row in train for text in row))
    others = list(dict.fromkeys(text for row in held for text in row))
    near = {own[number] for _, number, _ in near_duplicates(others, own, NEAR)}
    same = _sentence(train, held)  # which very short texts need not be
    return [equal or not near.isdisjoint(row) for equal, row in zip(same, train, strict=True)]


def _component(train: Texts, held: Texts) -> list[bool]:
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    numbers: dict[str, int] = {}
    rows = [[numbers.setdefault(normalised(text), len(numbers)) for text in row] for row in (*train, *held)]
    edges = np.array([(row[0], other) for row in rows for other in row], dtype=np.int64).T
    graph = coo_array((np.ones(edges.shape[1], dtype=bool), edges), shape=(len(numbers), len(numbers)))
    _, component = connected_components(graph, directed=False)
    evaluated = {component[row[0]] for row in rows[len(train) :]}
    return [component[row[0]] in evaluated for row in rows[: len(train)]]


_LEAKS: Final[dict[str, tuple[Callable[[Texts, Texts], list[bool]], str]]] = {
    "pair": (_pair, "are a pair of"),
    "sentence": (_sentence, "share a sentence with"),
    "near_dup": (_near_dup, "hold a near-duplicate of a sentence of"),
    "component": (_component, "are connected through shared sentences with"),
}
