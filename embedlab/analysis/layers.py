"""Numbers of one layer of a frozen decoder, each by its definition, in float64.

Let x be the pooled states of training texts, mu their mean and S their covariance. Two texts' states are compared by
their cosine after one of these, none of which has seen the texts that are compared:

    raw         x
    width       x minus its own mean over the coordinates, as TransformerLens leaves the states of GPT-2
    centred     x - mu
    z-scored    (x - mu) / standard deviation of each coordinate
    whitened    (x - mu) V diag(k)^-1/2,   V k V' = (1 - s) S + s tr(S) / D I

The covariance is shrunk by the s of Ledoit and Wolf (2004), as there may be fewer texts than coordinates. This is whitening by
PCA; ZCA turns the result by V', which changes no cosine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final

import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor
from torch.nn import functional

from embedlab.metrics import UndefinedCorrelation, pearson, spearman

__all__ = [
    "TREATMENTS",
    "Statistics",
    "correlations",
    "first_component_share",
    "mean_cosine",
    "participation_ratio",
    "pca_error",
    "statistics",
    "variance",
]

NOTHING: Final = 1e-12  # share of the largest variance below which a direction does not vary at all


@final
@dataclass(frozen=True)
class Statistics:
    """What is known of a layer from training texts.

    Attributes:
        mean: Of each coordinate, (D,).
        deviation: Standard deviation of each coordinate, (D,).
        values: Eigenvalues of the covariance, largest first, (D,).
        vectors: Its eigenvectors, one a column, (D, D).
        shrinkage: Share of the identity in the covariance that whitens, by Ledoit and Wolf.
    """

    mean: Tensor
    deviation: Tensor
    values: Tensor
    vectors: Tensor
    shrinkage: float


def statistics(states: Tensor) -> Statistics:
    """Take the statistics of the states of N training texts, (N, D)."""
    states = states.double()
    mean = states.mean(0)
    centred = states - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(states))
    shrinkage = float(ledoit_wolf_shrinkage(centred.numpy(), assume_centered=True)) if centred.any() else 0.0
    deviation = centred.square().mean(0).sqrt()
    return Statistics(mean, deviation, values.flip(0).clamp_min(0), vectors.flip(1), shrinkage)


def _raw(states: Tensor, known: Statistics) -> Tensor:
    return states


def _width(states: Tensor, known: Statistics) -> Tensor:
    return states - states.mean(-1, keepdim=True)


def _centred(states: Tensor, known: Statistics) -> Tensor:
    return states - known.mean


def _z_scored(states: Tensor, known: Statistics) -> Tensor:
    return (states - known.mean) * _inverse(known.deviation)


def _whitened(states: Tensor, known: Statistics) -> Tensor:
    values = (1 - known.shrinkage) * known.values + known.shrinkage * known.values.mean()
    return (states - known.mean) @ known.vectors * _inverse(values.sqrt())


def _inverse(deviation: Tensor) -> Tensor:
    """Return 1 / deviation, and 0 where nothing varies."""
    return torch.where(deviation > NOTHING * deviation.max(), 1 / deviation, 0.0)


# What is done to states before they are compared, by the name that tables and figures have for it.
TREATMENTS: Final[dict[str, Callable[[Tensor, Statistics], Tensor]]] = {
    "raw": _raw,
    "width": _width,
    "centred": _centred,
    "z-scored": _z_scored,
    "whitened": _whitened,
}


def correlations(first: Tensor, second: Tensor, gold: Tensor) -> tuple[float | None, float | None]:
    """Correlate the cosines of pairs with their gold scores.

    Args:
        first: States of the first texts, (B, D).
        second: States of the second texts, (B, D).
        gold: Gold scores, (B,).

    Returns:
        Pearson's and Spearman's correlation; None where undefined, as of cosines that are all the same.
    """
    cosines = functional.cosine_similarity(first, second, dim=-1)
    try:
        return pearson(cosines, gold), spearman(cosines, gold)
    except UndefinedCorrelation:
        return None, None


def mean_cosine(states: Tensor) -> float:
    """Return the mean cosine of all pairs of different texts, from their states, (N, D) (Ethayarajh, 2019).

    The pairs need not be gone through: the length of the sum of the unit vectors holds all their cosines.
    """
    units = functional.normalize(states.double(), dim=-1)
    total = units.sum(0)
    return float((total @ total - units.square().sum()) / (len(units) * (len(units) - 1)))


def first_component_share(values: Tensor) -> float | None:
    """Return the share of the variance along the first principal component; None where nothing varies.

    >>> first_component_share(torch.tensor([3.0, 1.0]))
    0.75
    """
    return float(values.max() / values.sum()) if values.sum() > 0 else None


def participation_ratio(values: Tensor) -> float | None:
    """Return how many directions the variance is spread over, (sum k)^2 / sum k^2; None where nothing varies.

    >>> participation_ratio(torch.tensor([2.0, 2.0, 0.0]))
    2.0
    """
    return float(values.sum().square() / values.square().sum()) if values.sum() > 0 else None


def variance(states: Tensor, known: Statistics) -> float:
    """Return the mean squared distance per coordinate of states (M, D) from the training mean: what explains nothing leaves."""
    return float((states.double() - known.mean).square().mean())


def pca_error(states: Tensor, known: Statistics, width: int) -> float:
    """Return the mean squared error per coordinate of states (M, D) rebuilt from the training texts' first components."""
    centred, axes = states.double() - known.mean, known.vectors[:, :width]
    return float((centred - centred @ axes @ axes.T).square().mean())
