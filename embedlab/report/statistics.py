"""Means over seeds, intervals over pairs, and tests. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Interval",
    "difference_test",
    "interval_of",
    "mean_and_sd",
    "mean_interval",
    "midranks",
    "pearson_difference",
    "pearson_interval",
    "spearman_difference",
    "spearman_interval",
    "spearman_resampled",
]

Array = NDArray[np.float64]
DEFINED: Final = 0.99  # share of the resamples whose correlation must be defined
CELLS: Final = 2_000_000  # pairs times resamples held at a time, so that memory stays small


@dataclass(frozen=True)
class Interval:
    """The ends of an interval."""

    low: float
    high: float


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and standard deviation over seeds.

    Args:
        values: One number per seed, at least one.

    Returns:
        The mean, and the standard deviation with n - 1 in the denominator; None for a single value.

    >>> mean_and_sd([1.0, 3.0])
    (2.0, 1.4142135623730951)
    >>> mean_and_sd([1.0])
    (1.0, None)
    """
    if not values:
        raise ValueError("`values` must hold at least one number, got none.")
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), sd


def midranks(values: ArrayLike) -> Array:
    """Return the ranks of values (N,), from 1 to N; equal values share their mean rank.

    >>> midranks([0.5, 0.1, 0.5]).tolist()
    [2.5, 1.0, 2.5]
    """
    _, place, held = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    ranks: Array = (np.cumsum(held) - (held - 1) / 2)[place]
    return ranks


def spearman_interval(
    scores: ArrayLike, labels: ArrayLike, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval | None:
    """Bootstrap pairs for an interval of Spearman's correlation.

    Percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3). Ranks
    are taken anew in every resample, ties sharing their mean rank. With several seeds, each resample draws
    the same pairs for all of them and averages their correlations: it is over pairs, not over seeds.

    Args:
        scores: What was predicted, (N,), or (S, N) for S seeds.
        labels: What people said of the same pairs, (N,).
        resamples: How often pairs are drawn.
        level: Share of the resamples inside the interval.
        seed: Of the drawing.

    Returns:
        The interval; None if the correlation is undefined on all pairs or on more than a hundredth of the resamples.

    Raises:
        ValueError: If the shapes do not fit, or a number is not finite.
    """
    return interval_of(spearman_resampled(scores, labels, resamples, seed), level)


def spearman_resampled(scores: ArrayLike, labels: ArrayLike, resamples: int = 2000, seed: int = 0) -> Array:
    """Return Spearman's correlation in every resample that `spearman_interval` draws, (resamples,), NaN where undefined."""
    return _resampled(scores, labels, resamples, seed, _Ranker)


def pearson_interval(
    scores: ArrayLike, labels: ArrayLike, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval | None:
    """Bootstrap pairs for an interval of Pearson's correlation; see `spearman_interval`."""
    return interval_of(_resampled(scores, labels, resamples, seed, _Keeper), level)


def spearman_difference(
    first: ArrayLike, second: ArrayLike, labels: ArrayLike, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Interval | None:
    """Bootstrap pairs for an interval of how much higher Spearman's correlation of one method is than of another.

    Each resample draws the same pairs for both, whose scores rise and fall with the pairs alike; else as `spearman_interval`.

    Args:
        first: What the one predicted, (N,), or (S, N) for S seeds.
        second: What the other predicted of the same pairs, (N,), or (R, N) for R seeds.
        labels: What people said of them, (N,).
        resamples: How often pairs are drawn.
        level: Share of the resamples inside the interval.
        seed: Of the drawing.

    Returns:
        The interval; None as there.

    Raises:
        ValueError: If the shapes do not fit, or a number is not finite.
    """
    own = [spearman_resampled(scores, labels, resamples, seed) for scores in (first, second)]
    return interval_of(own[0] - own[1], level)


def difference_test(first: Array, second: Array, level: float = 0.95) -> tuple[Interval, float] | None:
    """Test whether a correlation of one method is another's, by the bootstrap of `spearman_difference`.

    The p value is two-sided: twice the share of the resamples on the rarer side of 0, as which one resample more counts, so
    that it is never 0 (Davison and Hinkley, Bootstrap Methods and their Application, 1997, sections 4.2.3 and 4.4).

    Args:
        first: Of the one method in every resample, as `spearman_resampled` returns it.
        second: Of the other one in the same resamples.
        level: Share of the resamples inside the interval.

    Returns:
        The interval of the difference, and p; None as for `spearman_interval`.
    """
    apart = first - second
    if (interval := interval_of(apart, level)) is None:
        return None
    apart = apart[np.isfinite(apart)]
    rarer = min(int((apart <= 0).sum()), int((apart >= 0).sum()))
    return interval, min(1.0, 2 * (rarer + 1) / (len(apart) + 1))


def pearson_difference(
    first: ArrayLike, second: ArrayLike, labels: ArrayLike, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Interval | None:
    """Bootstrap pairs for an interval of a difference of Pearson's correlations; see `spearman_difference`."""
    own = [_resampled(scores, labels, resamples, seed, _Keeper) for scores in (first, second)]
    return interval_of(own[0] - own[1], level)


def mean_interval(values: ArrayLike, resamples: int = 2000, level: float = 0.95, seed: int = 0) -> Interval | None:
    """Bootstrap pairs, or queries, for an interval of a mean; percentile bootstrap, as in `spearman_interval`.

    Args:
        values: A number for each of them, (N,), or (S, N) for S seeds, whose mean is taken.
        resamples: How often they are drawn.
        level: Share of the resamples inside the interval.
        seed: Of the drawing.

    Returns:
        The interval; None for fewer than two of them.
    """
    own = np.atleast_2d(np.asarray(values, dtype=np.float64)).mean(axis=0)
    if len(own) < 2:
        return None
    means = np.concatenate([counts @ own / len(own) for counts in _resamples(len(own), resamples, seed)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


class _Keeper:
    """Hands out the values themselves, less their mean, which keeps the sums below accurate."""

    def __init__(self, values: Array) -> None:
        self.values: Array = (values - values.mean())[None]

    def __call__(self, counts: Array) -> Array:
        return self.values


class _Ranker:
    """Hands out mean ranks of values (N,) in resamples given as counts (B, N), without sorting again.

    Sorted once, equal values stand together. In a resample that holds a value C times, after R smaller ones,
    its mean rank is R + (C + 1) / 2.
    """

    def __init__(self, values: Array) -> None:
        self.order = np.argsort(values, kind="stable")
        ordered = values[self.order]
        self.starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        self.group = np.empty(len(values), dtype=np.intp)
        self.group[self.order] = np.cumsum(np.r_[False, ordered[1:] != ordered[:-1]])

    def __call__(self, counts: Array) -> Array:
        held = np.add.reduceat(counts[:, self.order], self.starts, axis=1)  # (B, groups)
        ranks: Array = np.cumsum(held, axis=1) - (held - 1) / 2
        # The mean rank of a resample of N is (N + 1) / 2, whatever the ties.
        centred: Array = ranks[:, self.group] - (counts.shape[1] + 1) / 2
        return centred


def _resampled(
    scores: ArrayLike,
    labels: ArrayLike,
    resamples: int,
    seed: int,
    reader: Callable[[Array], Callable[[Array], Array]],
) -> Array:
    """Return the correlation in each resample, NaN where it is undefined; everywhere, where it is on all pairs."""
    x = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    y = np.asarray(labels, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 1 or x.shape[1] != len(y):
        raise ValueError(
            f"`scores` must have one number per label, got shapes {np.shape(scores)} and {np.shape(labels)}."
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("`scores` and `labels` must be finite, got NaN or infinity among them.")
    if resamples < 1:
        raise ValueError(f"`resamples` must be at least 1, got {resamples}.")
    if len(y) < 2 or np.ptp(y) == 0 or (np.ptp(x, axis=1) == 0).any():
        return np.full(resamples, np.nan)
    read_label, read_scores = reader(y), [reader(own) for own in x]
    found = []
    for counts in _resamples(len(y), resamples, seed):
        label = read_label(counts)
        found.append(np.mean([_correlation(counts, read(counts), label) for read in read_scores], axis=0))
    return np.concatenate(found)


def interval_of(values: Array, level: float = 0.95) -> Interval | None:
    """Return the interval that holds a share of the resamples; None if more than a hundredth of them are undefined."""
    if not 0 < level < 1:
        raise ValueError(f"`level` must lie between 0 and 1, got {level}.")
    resamples, values = len(values), values[np.isfinite(values)]
    if len(values) < DEFINED * resamples:  # those left would be a choice of samples, and could miss the estimate
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _resamples(size: int, resamples: int, seed: int) -> Iterator[Array]:
    """Draw pairs with replacement: how often each occurs, (B, N), a block at a time."""
    generator = np.random.default_rng(seed)
    block = max(1, min(resamples, CELLS // size))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = generator.integers(0, size, (rows, size)) + np.arange(rows)[:, None] * size
        yield np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)


def _correlation(counts: Array, x: Array, y: Array) -> Array:
    """Return Pearson's correlation in each resample, (B,), NaN where one side is constant.

    Args:
        counts: How often each pair occurs, (B, N); rows add up to N.
        x: Values, (B, N) or (1, N).
        y: Values, (B, N) or (1, N).
    """
    size = counts.shape[1]
    x, y = np.broadcast_to(x, counts.shape), np.broadcast_to(y, counts.shape)
    weighted_x, weighted_y = counts * x, counts * y
    mean_x, mean_y = weighted_x.sum(1) / size, weighted_y.sum(1) / size
    covariance = np.einsum("bn,bn->b", weighted_x, y) - size * mean_x * mean_y
    spread_x = np.einsum("bn,bn->b", weighted_x, x) - size * mean_x**2
    spread_y = np.einsum("bn,bn->b", weighted_y, y) - size * mean_y**2
    # A resample in which one side is constant leaves rounding errors instead of zeros.
    floor_x = 1e-12 * size * np.max(np.abs(x), axis=1) ** 2
    floor_y = 1e-12 * size * np.max(np.abs(y), axis=1) ** 2
    defined = (spread_x > floor_x) & (spread_y > floor_y)
    result = np.full(len(counts), np.nan)
    result[defined] = covariance[defined] / np.sqrt(spread_x[defined] * spread_y[defined])
    return result
