"""The parts of a set that look alike in one respect, and how well a strategy does on each.

A correlation within a slice is lower the less its gold scores differ (restriction of range; Thorndike, Personnel Selection,
1949), so their standard deviation stands beside it. The mean rank error compares slices without that; but where a slice is
chosen by its gold scores, every imperfect strategy overrates the low ones and underrates the high ones, so that these compare
strategies only. Words of negation and number are English.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedlab.analysis.rank_errors import rank_errors
from embedlab.analysis.scored import PairSet
from embedlab.report.statistics import Interval, mean_interval, midranks, pearson_interval, spearman_interval

__all__ = ["FEW", "QUANTITIES", "Slice", "Value", "measure", "overlap", "slices_of", "words"]

Array = NDArray[np.float64]
FEW: Final = 30  # pairs below which a slice is marked
WORD: Final = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
NUMBER: Final = re.compile(r"\d+(?:[.,]\d+)*")
NEGATIONS: Final = frozenset(
    "not no never none nobody nothing nowhere neither nor cannot without".split()  # and what ends in n't
)
# "one" is left out: it mostly stands for somebody or something.
SPELLED: Final = {
    name: str(number)
    for number, name in enumerate("two three four five six seven eight nine ten eleven twelve".split(), 2)
}
ENDS: Final = (".", "!", "?", "…")
CLOSING: Final = " \t\n\"'\u201d\u2019»)]}"
QUANTITIES: Final = ("Spearman", "Pearson", "Rank error")


@dataclass(frozen=True)
class Slice:
    """Some pairs of a set.

    Attributes:
        respect: In which its pairs are alike.
        name: How.
        members: Whether each pair of the set belongs to it, (N,).
    """

    respect: str
    name: str
    members: NDArray[np.bool_]

    @property
    def pairs(self) -> int:
        """How many pairs it has."""
        return int(self.members.sum())

    def spread(self, gold: Array) -> float | None:
        """Return the standard deviation of its gold scores; None for a single pair."""
        return float(np.std(gold[self.members], ddof=1)) if self.pairs > 1 else None


@dataclass(frozen=True)
class Value:
    """A number and its 95 % interval; None where undefined."""

    value: float | None
    interval: Interval | None


Masks = dict[str, NDArray[np.bool_]]


def slices_of(pairs: PairSet) -> list[Slice]:
    """Cut a set in every respect; slices without a pair, and respects in which all pairs are alike, are left out."""
    texts = list(zip(pairs.first, pairs.second, strict=True))
    lengths = np.array([len(words(a)) + len(words(b)) for a, b in texts], dtype=np.float64)
    overlaps = np.array([overlap(a, b) for a, b in texts])
    genres = [own or "none" for own in pairs.genres]
    quarter, high = _quarters(overlaps), pairs.gold > np.median(pairs.gold)
    respects: dict[str, Masks] = {
        "genre": {name: np.array([name == own for own in genres]) for name in dict.fromkeys(genres)},
        "words, both texts": _by_quarter(lengths, 0),
        "overlap of words": _by_quarter(overlaps, 2),
        "overlap against gold": {
            "upper quarter, gold up to its median": (quarter == 3) & ~high,
            "lower quarter, gold above its median": (quarter == 0) & high & (np.ptp(overlaps) > 0),
        },
        "negation": _by_sides(texts, is_negated),
        "numbers": _by_numbers(texts),
        "final punctuation": _by_sides(texts, ends_in_punctuation),
    }
    found = [Slice("all pairs", "", np.ones(len(pairs), dtype=bool))]
    for respect, masks in respects.items():
        own = [Slice(respect, name, mask) for name, mask in masks.items() if mask.any()]
        found += [one for one in own if one.pairs < len(pairs)]
    return found


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation.

    >>> words("He didn't pay $2.50.")
    ['he', "didn't", 'pay', '2', '50']
    """
    if not text.isascii():  # a vowel sign would part a word
        text = "".join(own for own in unicodedata.normalize("NFC", text) if unicodedata.category(own)[0] != "M")
    return WORD.findall(text.lower())


def overlap(first: str, second: str) -> float:
    """Return the share of the distinct words of two texts that stand in both (Jaccard); 1 where neither has any.

    >>> overlap("A man sings.", "a man dances")
    0.5
    """
    one, other = set(words(first)), set(words(second))
    return len(one & other) / len(one | other) if one | other else 1.0


def is_negated(text: str) -> bool:
    """Tell whether a text has a word of negation.

    >>> is_negated("She can't sing."), is_negated("Nobody sings"), is_negated("A knot")
    (True, True, False)
    """
    return any(word in NEGATIONS or word.endswith(("n't", "n\u2019t")) for word in words(text))


def numbers(text: str) -> set[str]:
    """Return the numbers in a text, in digits; two to twelve in words too.

    >>> sorted(numbers("Two men paid 1,200 dollars, 2.5% more")) == ["1200", "2", "2.5"]
    True
    """
    digits = {re.sub(r",(?=\d{3}(\D|$))", "", own) for own in NUMBER.findall(text)}
    return digits | {SPELLED[word] for word in words(text) if word in SPELLED}


def ends_in_punctuation(text: str) -> bool:
    """Tell whether a text ends in a full stop, an exclamation or a question mark, be it within quotes or brackets."""
    return text.rstrip(CLOSING).endswith(ENDS)


def _quarters(values: Array) -> NDArray[np.intp]:
    """Return which quarter each value, (N,), lies in, 0 to 3; equal values lie in one."""
    return np.searchsorted(np.quantile(values, [0.25, 0.5, 0.75]), values, side="left")


def _by_quarter(values: Array, digits: int) -> Masks:
    """Cut into quarters by a value of each pair; a quarter is called by its least and its largest value.

    They have so many digits behind the point, or as many as tell the quarters apart.
    """
    masks: Masks = {}
    quarters = _quarters(values)
    for own in (there := np.unique(quarters)):
        mask = quarters == own
        low, high = (f"{end(values[mask]):.{digits}f}" for end in (np.min, np.max))
        masks[f"{low} to {high}" if low != high else low] = mask
    return masks if len(masks) == len(there) else _by_quarter(values, digits + 1)


def _by_sides(texts: Sequence[tuple[str, str]], holds: Callable[[str], bool]) -> Masks:
    """Cut by how many of the two texts something holds for."""
    held = np.array([holds(a) + holds(b) for a, b in texts])
    return {name: held == number for name, number in (("in one text", 1), ("in both", 2), ("in none", 0))}


def _by_numbers(texts: Sequence[tuple[str, str]]) -> Masks:
    """Cut by whether the numbers of the two texts are the same."""
    held = [(numbers(a), numbers(b)) for a, b in texts]
    differ, some = (np.array(own) for own in ([a != b for a, b in held], [bool(a or b) for a, b in held]))
    return {"differ": differ, "the same": some & ~differ, "none": ~some}


def measure(own: Slice, scores: Array, gold: Array, resamples: int) -> dict[str, Value]:
    """Measure a strategy on a slice.

    Args:
        own: The slice.
        scores: What the strategy predicted on the whole set, (S, N) for S seeds.
        gold: What people said, (N,).
        resamples: Of the bootstrap over the pairs of the slice; 0 leaves intervals out.

    Returns:
        Of each of `QUANTITIES` the mean over seeds. Correlations are of the slice alone, rank errors of ranks in the whole set.
    """
    x, y = scores[:, own.members], gold[own.members]
    errors = rank_errors(scores, gold)[own.members]
    few = len(y) < 2 or not resamples
    return {
        "Spearman": Value(
            _mean_correlation([midranks(seed) for seed in x], midranks(y)),
            None if few else spearman_interval(x, y, resamples),
        ),
        "Pearson": Value(_mean_correlation(list(x), y), None if few else pearson_interval(x, y, resamples)),
        "Rank error": Value(float(errors.mean()), None if few else mean_interval(errors, resamples)),
    }


def _mean_correlation(x: Sequence[Array], y: Array) -> float | None:
    """Return Pearson's correlation averaged over seeds; None where it is undefined for one."""
    if len(y) < 2 or np.ptp(y) == 0 or any(np.ptp(own) == 0 for own in x):
        return None
    return float(np.mean([np.corrcoef(own, y)[0, 1] for own in x]))
