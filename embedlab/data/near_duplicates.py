"""Texts that are nearly the same: Jaccard similarity of their sets of character 5-grams.

Candidates come from MinHash and locality-sensitive hashing (Broder, On the resemblance and containment of documents, 1997;
Indyk and Motwani, Approximate nearest neighbors, 1998), by `datasketch`; the similarity of each is then computed exactly. With
b bands of r hashes, a pair of similarity s is a candidate with probability 1 - (1 - s^r)^b. Bands are chosen so that one at the
threshold itself is missed once in ten million; one above it, less often.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Final

__all__ = ["grams", "jaccard", "near_duplicates", "spaced", "words"]

LENGTH: Final = 5  # characters of a gram
MISSED: Final = 1e-7  # probability that a pair at the threshold is no candidate
HASHES: Final = 256  # at most, of a text


def words(text: str) -> list[str]:
    """Lower-case a text and return its runs of letters and digits, of any script, with the marks that they carry.

    >>> words("A man's dog."), words("काम।")
    (['a', 'man', 's', 'dog'], ['काम'])
    """
    if text.isascii():
        return re.findall(r"[^\W_]+", text.lower())
    folded = unicodedata.normalize("NFKC", text).lower()
    kept = (own if own.isalnum() or unicodedata.category(own)[0] == "M" else " " for own in folded)
    return "".join(kept).split()


def spaced(text: str) -> str:
    """Lower-case a text and keep its runs of letters and digits, of any script, with a space around each.

    >>> spaced("A  man's dog."), spaced("?!")
    (' a man s dog ', ' ?! ')
    """
    return f" {' '.join(words(text)) or text.strip()} "


def grams(text: str) -> frozenset[str]:
    """Return the 5-grams of a text, `spaced`; a shorter one is its own gram.

    >>> sorted(grams("A man.")), sorted(grams("No"))
    ([' a ma', ' man ', 'a man'], [' no '])
    """
    text = spaced(text)
    return frozenset(text[start : start + LENGTH] for start in range(max(1, len(text) - LENGTH + 1)))


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Return how many of the members of either set are in both, 0 to 1."""
    shared = len(first & second)
    return shared / (len(first) + len(second) - shared)


def near_duplicates(texts: Sequence[str], others: Sequence[str], threshold: float) -> Iterator[tuple[int, int, float]]:
    """Give each text of one list that is similar to one of the other.

    Args:
        texts: N texts, held in memory: the shorter list.
        others: M texts, gone through once.
        threshold: Lowest similarity, above 0 and at most 1.

    Yields:
        Number in `texts`, number in `others`, similarity.
    """
    from datasketch import MinHash, MinHashLSH  # 0.6 s that only this needs

    bands, size = _bands(threshold)
    index = MinHashLSH(num_perm=bands * size, params=(bands, size))
    own = [grams(text) for text in texts]
    for number, sketch in enumerate(MinHash.generator(map(_encoded, own), num_perm=bands * size)):
        index.insert(number, sketch)
    for other, sketch in enumerate(MinHash.generator((_encoded(grams(o)) for o in others), num_perm=bands * size)):
        candidates = index.query(sketch)
        found = grams(others[other]) if candidates else frozenset()
        for number in sorted(candidates):
            if (similarity := jaccard(own[number], found)) >= threshold:
                yield number, other, similarity


def _encoded(members: frozenset[str]) -> list[bytes]:
    return [own.encode("utf-8", "surrogatepass") for own in members]


def _bands(threshold: float) -> tuple[int, int]:
    """Return bands and hashes of a band: as many hashes as can be had, as they leave fewer candidates.

    >>> _bands(0.6), _bands(0.7), _bands(0.9), _bands(1.0)
    ((67, 3), (59, 4), (29, 8), (1, 256))
    """
    for size in range(HASHES, 0, -1):
        miss = 1 - threshold**size  # of a single band
        bands = 1 if miss == 0 else math.ceil(math.log(MISSED) / math.log(miss)) if miss < 1 else HASHES + 1
        if bands * size <= HASHES:
            return bands, size
    raise ValueError(f"`threshold` must be at least 0.1, got {threshold}.")
