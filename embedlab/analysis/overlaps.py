"""How much of one set of rows stands in another: equal texts, equal pairs, and near-duplicates, by exact numbers.

A row is its texts in order. Only rows of two texts are pairs: they can be shared whole, in the same order or the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Final, final

from embedlab.data.leaks import normalised
from embedlab.data.near_duplicates import grams, jaccard, near_duplicates, spaced

__all__ = ["THRESHOLDS", "Count", "Overlaps"]

THRESHOLDS: Final = (0.9, 0.8, 0.7, 0.6)
Row = Sequence[str]
SAME, TURNED, SENTENCE = "same pair", "same pair, other order", "sentence"  # kinds of overlap
NEAR_PAIR, NEAR = "near-duplicate pair", "near-duplicate"
STRAIGHT, CROSSED = {(0, 0), (1, 1)}, {(0, 1), (1, 0)}  # which sides of two pairs are alike


@dataclass(frozen=True)
class Count:
    """How many test rows overlap, by one way of comparing texts.

    Attributes:
        compared: How texts are compared.
        one: Rows of which a text is shared.
        both: Rows of which both are; None unless the test rows are pairs.
        same: Pairs that are a training pair in the same order; None unless both sets are pairs, and for near-duplicates.
        either: Pairs that are one in either order; None unless both sets are pairs.
        distinct: Distinct texts of the test set, of the training set, and shared; None for near-duplicates.
    """

    compared: str
    one: int
    both: int | None
    same: int | None
    either: int | None
    distinct: tuple[int, int, int] | None

    def record(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Match:
    """A training text that is like a text of a test row.

    Attributes:
        row: Number of the training row.
        side: Place of the text in it.
        own: Place of the text in the test row.
        equal: Whether the two are the same, normalised.
    """

    row: int
    side: int
    own: int
    equal: bool


@final
class Overlaps:
    """Two sets of rows, compared.

    Args:
        train: Texts of each training row.
        test: Texts of each test row.
    """

    def __init__(self, train: Sequence[Row], test: Sequence[Row]) -> None:
        self.train, self.test = train, test
        self._test_pairs = all(len(row) == 2 for row in test)
        self._pairs = self._test_pairs and all(len(row) == 2 for row in train)
        self._equal = _places(train, normalised)
        self._near_places = _places(train, spaced)

    @cached_property
    def _near(self) -> dict[str, dict[str, float]]:
        """Return for each test text the training texts that are similar, with how similar they are."""
        own = list(dict.fromkeys(spaced(text) for row in self.test for text in row))
        others = list(self._near_places)
        found: dict[str, dict[str, float]] = defaultdict(dict)
        if len(own) <= len(others):
            for number, other, similarity in near_duplicates(own, others, THRESHOLDS[-1]):
                found[own[number]][others[other]] = similarity
        else:  # the shorter list is held in memory
            for other, number, similarity in near_duplicates(others, own, THRESHOLDS[-1]):
                found[own[number]][others[other]] = similarity
        return dict(found)

    def equal(self) -> list[Count]:
        """Count with texts as they are, and normalised."""
        return [self._exact("equal", str), self._exact("equal, normalised", normalised)]

    def similar(self) -> list[Count]:
        """Count near-duplicates at each threshold."""
        return [self._similar(threshold) for threshold in THRESHOLDS]

    def _exact(self, compared: str, norm: Callable[[str], str]) -> Count:
        train = [tuple(norm(text) for text in row) for row in self.train]
        test = [tuple(norm(text) for text in row) for row in self.test]
        texts, own = {text for row in train for text in row}, {text for row in test for text in row}
        pairs = set(train)
        return Count(
            compared,
            one=sum(any(text in texts for text in row) for row in test),
            both=sum(all(text in texts for text in row) for row in test) if self._test_pairs else None,
            same=sum(row in pairs for row in test) if self._pairs else None,
            either=sum(row in pairs or row[::-1] in pairs for row in test) if self._pairs else None,
            distinct=(len(own), len(texts), len(own & texts)),
        )

    def _similar(self, threshold: float) -> Count:
        """Count near-duplicates; a pair is shared whole where both sides are like different sides of one training pair."""
        near = {
            text: [other for other, similarity in found.items() if similarity >= threshold]
            for text, found in self._near.items()
        }
        one = both = whole = 0
        for row in self.test:
            sides = [
                {place for other in near.get(spaced(text), ()) for place in self._near_places[other]} for text in row
            ]
            one += any(sides)
            both += all(sides)
            whole += self._pairs and any((number, 1 - side) in sides[1] for number, side in sides[0])
        return Count(
            f"Jaccard >= {threshold}",
            one,
            both if self._test_pairs else None,
            None,
            whole if self._pairs else None,
            None,
        )

    def rows(self) -> Iterator[dict[str, Any]]:
        """Give each test row with each training row that has a text like one of its own.

        Yields:
            Numbers of both rows, from 0 as the ids of predictions; the strongest kind of overlap; and of the most similar texts
            of the two rows, similarity and both texts.
        """
        for number, row in enumerate(self.test):
            matches: dict[int, list[Match]] = defaultdict(list)
            for match in self._matches(row):
                matches[match.row].append(match)
            for other in sorted(matches):
                pairs = [(row[own.own], self.train[other][own.side]) for own in matches[other]]
                similarity, texts = max(
                    ((jaccard(grams(a), grams(b)), (a, b)) for a, b in pairs), key=lambda own: own[0]
                )
                yield {
                    "test_row": number,
                    "kind": self._kind(matches[other]),
                    "train_row": other,
                    "jaccard": round(similarity, 4),
                    "test_text": texts[0],
                    "train_text": texts[1],
                }

    def _matches(self, row: Row) -> Iterator[Match]:
        for own, text in enumerate(row):
            equal = self._equal.get(normalised(text), [])
            yield from (Match(number, side, own, True) for number, side in equal)
            near = {place for other in self._near.get(spaced(text), ()) for place in self._near_places[other]}
            yield from (Match(number, side, own, False) for number, side in near.difference(equal))

    def _kind(self, matches: Sequence[Match]) -> str:
        """Return the strongest way in which a test row overlaps with a training row."""
        equal = {(own.own, own.side) for own in matches if own.equal}
        near = {(own.own, own.side) for own in matches}
        if self._pairs:
            for kind, found, sides in (
                (SAME, equal, STRAIGHT),
                (TURNED, equal, CROSSED),
                (NEAR_PAIR, near, STRAIGHT),
                (NEAR_PAIR, near, CROSSED),
            ):
                if sides <= found:
                    return kind
        return SENTENCE if equal else NEAR


def _places(rows: Sequence[Row], norm: Callable[[str], str]) -> Mapping[str, list[tuple[int, int]]]:
    """Return where each text stands: row and place in it."""
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for number, row in enumerate(rows):
        for side, text in enumerate(row):
            places[norm(text)].append((number, side))
    return dict(places)
