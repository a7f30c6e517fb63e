"""What should not change a score, or hardly: a final full stop, a capital letter, which of two texts comes first.

The FREEZE paper (section 10) found that its head does not recognise two equal sentences. A cosine of equal vectors is 1; what a
head or a log-probability gives for (x, x), and whether pairs of different texts score higher, is measured here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from embedlab.analysis.scored import PairSet

__all__ = ["Equal", "Invariance", "Scorer", "Shift", "chosen", "lower_cased", "pooled", "score_all", "without_stop"]

Array = NDArray[np.float64]
Pair = tuple[str, str]
MEAN: Final = 0.02  # what a shift may be on average,
MOST: Final = 0.05  # and for this share of the texts or pairs:
SHARE: Final = 0.95
ROUNDING: Final = 1e-5  # standard deviations by which equal scores may differ


class Scorer(Protocol):
    """What is asked of a loaded run."""

    def score(self, pairs: Sequence[Pair], *, show_progress_bar: bool = False) -> NDArray[np.float32]:
        """Score N pairs, (N,), the query first."""


@dataclass(frozen=True)
class Scores:
    """What one run gave.

    Attributes:
        spread: Standard deviation of the scores that it recorded for the set.
        set_scores: These, sorted, (N,).
        equal: Scores of texts with themselves, (T,).
        before: Scores of the pairs that are changed, by what is changed.
        after: Scores of the changed ones.
        reread: Largest difference between a score of the loaded run and what was recorded.
    """

    spread: float
    set_scores: Array
    equal: Array
    before: dict[str, Array]
    after: dict[str, Array]
    reread: float


@dataclass(frozen=True)
class Equal:
    """Scores of texts with themselves, over seeds.

    Attributes:
        number: Texts.
        mean: Of the scores.
        sd: Standard deviation; 0 where all are alike.
        low: Smallest.
        high: Largest.
        above: Share of the set's pairs that a text with itself scores at least as high as, on average over texts.
    """

    number: int
    mean: float
    sd: float
    low: float
    high: float
    above: float


@dataclass(frozen=True)
class Shift:
    """By how much a change moves scores, over seeds; None throughout where no text can be changed so.

    Attributes:
        number: Texts or pairs that are changed.
        mean: Score of the changed less that of the unchanged, on average.
        sd: Standard deviation of that.
        low: Smallest.
        high: Largest.
        size: Mean of its absolute value.
        most: 95th percentile of its absolute value.
        within_mean: Share of absolute values up to .02.
        within_most: Share of absolute values up to .05.
        size_in_sd: `size` in standard deviations of the scores that the run gave to the set.
        most_in_sd: `most` in these.
        holds: Whether `size` is at most .02, and `within_most` at least 95 %.
    """

    number: int
    mean: float
    sd: float
    low: float
    high: float
    size: float
    most: float
    within_mean: float
    within_most: float
    size_in_sd: float
    most_in_sd: float
    holds: bool


@dataclass(frozen=True)
class Invariance:
    """What was found for one strategy.

    Attributes:
        equal: Of a text with itself.
        shifts: By what was changed.
        reread: Largest difference between a score of the loaded run and what was recorded.
    """

    equal: Equal
    shifts: dict[str, Shift | None]
    reread: float

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def without_stop(text: str) -> str | None:
    """Leave out a final full stop and the space before it; None where there is none, or nothing else.

    >>> without_stop("A dog runs ."), without_stop("Wait..."), without_stop("A dog"), without_stop(".")
    ('A dog runs', None, None, None)
    """
    if not text.endswith(".") or text.endswith(".."):
        return None
    return text[:-1].rstrip() or None


def lower_cased(text: str) -> str | None:
    """Write a text in small letters; None where it has no others.

    >>> lower_cased("A dog"), lower_cased("a dog")
    ('a dog', None)
    """
    return None if text.lower() == text else text.lower()


CHANGES: Final[dict[str, Callable[[str], str | None]]] = {
    "final full stop left out": without_stop,
    "lower case": lower_cased,
}


def questions(texts: Sequence[str], pairs: Sequence[Pair]) -> Iterator[tuple[str, list[Pair], list[Pair]]]:
    """Give what is changed, the pairs as they are, and the changed ones.

    Args:
        texts: Distinct texts x.
        pairs: Pairs (x, y) of different or equal texts.
    """
    for name, change in CHANGES.items():
        changed = [(text, own) for text in texts if (own := change(text)) is not None]
        yield f"{name}: (x, x') and (x, x)", [(x, x) for x, _ in changed], changed
        rows = [(pair, own) for pair in pairs if (own := change(pair[0])) is not None]
        yield f"{name}: (x', y) and (x, y)", [pair for pair, _ in rows], [(own, pair[1]) for pair, own in rows]
    yield "sides changed: (y, x) and (x, y)", list(pairs), [(y, x) for x, y in pairs]


def chosen(number: int, limit: int | None) -> NDArray[np.intp]:
    """Return which of a number of things are looked at: all, or a random but always the same choice of them."""
    if limit is None or number <= limit:
        return np.arange(number)
    return np.sort(np.random.default_rng(0).choice(number, limit, replace=False))


def score_all(model: Scorer, pairs: PairSet, recorded: Array, query: str, limit: int | None, shown: bool) -> Scores:
    """Let a run score equal texts, changed ones and the pairs of the set.

    Args:
        model: The loaded run.
        pairs: The set.
        recorded: What the run scored then, (N,).
        query: Which text of a pair is the query: first or second.
        limit: Most texts, and most pairs, that are looked at; None is all.
        shown: Whether to show how far it is, on stderr.
    """
    everything = list(dict.fromkeys([*pairs.first, *pairs.second]))
    texts = [everything[i] for i in chosen(len(everything), limit)]
    rows = chosen(len(pairs), limit)
    own = [(pairs.first[i], pairs.second[i]) for i in rows]
    equal = [(text, text) for text in texts]
    asked = list(questions(texts, own))
    needed = list(dict.fromkeys([*equal, *own, *(pair for _, *both in asked for side in both for pair in side)]))
    sides = needed if query == "first" else [(second, first) for first, second in needed]
    known = dict(zip(needed, model.score(sides, show_progress_bar=shown).astype(np.float64), strict=True))

    def of(several: Sequence[Pair]) -> Array:
        return np.array([known[pair] for pair in several], dtype=np.float64)

    return Scores(
        spread=float(np.std(recorded, ddof=1)),
        set_scores=np.sort(recorded),
        equal=of(equal),
        before={name: of(before) for name, before, _ in asked},
        after={name: of(after) for name, _, after in asked},
        reread=float(np.abs(of(own) - recorded[rows]).max()),
    )


def pooled(found: Sequence[Scores]) -> Invariance:
    """Sum up what the seeds of a strategy gave: all texts of all seeds together."""
    equal = np.concatenate([own.equal for own in found])
    above = []
    for own in found:
        reached = own.equal + ROUNDING * own.spread
        above.append(np.searchsorted(own.set_scores, reached, side="right").mean() / len(own.set_scores))
    first = found[0]
    return Invariance(
        Equal(
            number=len(first.equal),
            mean=float(equal.mean()),
            sd=float(equal.std()),
            low=float(equal.min()),
            high=float(equal.max()),
            above=float(np.mean(above)),
        ),
        {name: _shift([own.after[name] - own.before[name] for own in found], found) for name in first.before},
        max(own.reread for own in found),
    )


def _shift(shifts: Sequence[Array], found: Sequence[Scores]) -> Shift | None:
    """Sum up shifts, (T,) of each seed."""
    if not len(shifts[0]):
        return None
    shift = np.concatenate(shifts)
    size = np.abs(shift)
    in_sd = np.concatenate([np.abs(own) / scores.spread for own, scores in zip(shifts, found, strict=True)])
    mean, most = float(size.mean()), float(np.quantile(size, SHARE))
    return Shift(
        number=len(shifts[0]),
        mean=float(shift.mean()),
        sd=float(shift.std()),
        low=float(shift.min()),
        high=float(shift.max()),
        size=mean,
        most=most,
        within_mean=float((size <= MEAN).mean()),
        within_most=float((size <= MOST).mean()),
        size_in_sd=float(in_sd.mean()),
        most_in_sd=float(np.quantile(in_sd, SHARE)),
        holds=bool(mean <= MEAN and (size <= MOST).mean() >= SHARE),
    )
