"""By how much a strategy rates pairs too high or too low, whatever the scale of its scores.

A cosine, a log-probability and people's 0 to 1 cannot be subtracted from one another, and a straight line fitted between them
would be one more model. What Spearman's correlation compares are ranks, so errors are differences of ranks: of pairs ordered
by score, and of pairs ordered by gold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedlab.errors import UserError
from embedlab.report.statistics import midranks

__all__ = ["Worst", "rank_errors", "residuals", "worst"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Worst:
    """The pairs with the largest errors.

    Attributes:
        overrated: Places of pairs whose error is above 0, largest first.
        underrated: Places of pairs whose error is below 0, largest first.
    """

    overrated: Sequence[int]
    underrated: Sequence[int]


def rank_errors(scores: Array, gold: Array) -> Array:
    """Return the rank by score less the rank by gold, as a share of the ranks there are.

    Ranks are those of the whole set, and equal values share their mean rank. The error is 1 for the pair with the highest score
    of all and the lowest gold of all, and 0 on average over the set. Without ties Spearman's correlation is
    `1 - 6 sum(errors ** 2) (N - 1) / (N (N + 1))`, so that the largest errors are what costs most of it. People's scores have
    many ties: a pair in the middle of a large one may have a small error without any fault of the strategy.

    Args:
        scores: Of S seeds, (S, N), N at least 2.
        gold: What people said, (N,).

    Returns:
        The mean over seeds, (N,), -1 to 1; above 0 where a pair is overrated.

    >>> rank_errors(np.array([[0.1, 0.9, 0.5]]), np.array([0.0, 0.2, 1.0])).tolist()
    [0.0, 0.5, -0.5]
    """
    by_gold = midranks(gold)
    errors: Array = np.mean([(midranks(own) - by_gold) / (len(gold) - 1) for own in scores], axis=0)
    return errors


def residuals(scores: Array, gold: Array) -> Array:
    """Return score less gold, for scores that are meant on the scale of the gold scores, 0 to 1.

    Whether they are meant so, no run tells: a cosine may stay within 0 to 1 too. That is why it must be asked for.

    Args:
        scores: Of S seeds, (S, N).
        gold: What people said, (N,).

    Returns:
        The mean over seeds, (N,).

    Raises:
        UserError: If a score lies outside of 0 to 1.
    """
    if scores.min() < 0 or scores.max() > 1:
        raise UserError(
            f"`--residuals` needs scores on the scale of the gold scores, 0 to 1, got {scores.min():.4g} to "
            f"{scores.max():.4g}; leave it out to compare ranks."
        )
    errors: Array = scores.mean(axis=0) - gold
    return errors


def worst(errors: Array, number: int) -> Worst:
    """Find the pairs with the largest errors, (N,), a number of each sign; of equal ones those that come first."""
    down, up = (np.argsort(sign * errors, kind="stable")[:number] for sign in (-1.0, 1.0))
    return Worst([int(i) for i in down if errors[i] > 0], [int(i) for i in up if errors[i] < 0])
