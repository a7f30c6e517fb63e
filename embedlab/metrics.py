"""Correlations, in float64, from the definition."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

__all__ = ["UndefinedCorrelation", "pearson", "spearman"]


class UndefinedCorrelation(ValueError):  # noqa: N818  # a finding about the data, not a fault
    """A correlation that does not exist; the message says why."""


def pearson(predicted: ArrayLike, gold: ArrayLike) -> float:
    """Return Pearson's correlation of two series of N numbers.

    Raises:
        UndefinedCorrelation: If a series is constant, holds something that is no number, or N is below 2.

    >>> round(pearson([1, 2, 3], [1, 2, 4]), 4)
    0.982
    """
    x, y = _series(predicted, "predictions"), _series(gold, "gold scores")
    if len(x) != len(y):
        raise ValueError(f"`predicted` and `gold` must be of one length, got {len(x)} and {len(y)}.")
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def spearman(predicted: ArrayLike, gold: ArrayLike) -> float:
    """Return Spearman's correlation of two series of N numbers: Pearson's of their ranks, ties sharing theirs.

    Raises:
        UndefinedCorrelation: As for `pearson`.

    >>> spearman([1, 2, 3], [1, 2, 400])
    1.0
    """
    return pearson(rankdata(_series(predicted, "predictions")), rankdata(_series(gold, "gold scores")))


def _series(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """Check and convert one series."""
    series = np.asarray(values, dtype=np.float64)
    if len(series) < 2:
        raise UndefinedCorrelation(f"the {name} are fewer than two")
    if not np.isfinite(series).all():
        raise UndefinedCorrelation(f"{int((~np.isfinite(series)).sum())} of the {name} are not finite")
    if (series == series[0]).all():
        raise UndefinedCorrelation(f"the {name} are constant")
    return series
