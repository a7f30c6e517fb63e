"""Correlations of scores with labels, by torchmetrics, in float64 over all pairs of a set."""

from __future__ import annotations

import torch
from scipy.stats import rankdata
from torch import Tensor
from torchmetrics.functional import pearson_corrcoef

__all__ = ["UndefinedCorrelation", "pearson", "spearman"]


class UndefinedCorrelation(ValueError):  # noqa: N818  # a finding about the data, not a fault
    """Raised where a correlation is undefined; the message says why."""


def pearson(predicted: Tensor, gold: Tensor) -> float:
    """Return Pearson's correlation of N predictions with N gold scores, (N,) each.

    Raises:
        UndefinedCorrelation: If a series is constant or holds a value that is not finite, or N is below 2.
        ValueError: If their lengths differ.

    >>> round(pearson(torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 2, 4])), 4)
    0.982
    """
    return float(pearson_corrcoef(*_series(predicted, gold)))


def spearman(predicted: Tensor, gold: Tensor) -> float:
    """Return Spearman's correlation of N predictions with N gold scores, (N,) each; ties share their mean rank.

    Computed as Pearson's of the float64 ranks; torchmetrics' own uses float32 and returns 0 for a constant series.

    Raises:
        UndefinedCorrelation: As for `pearson`.
        ValueError: If their lengths differ.

    >>> round(spearman(torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 2, 1e20])), 9)
    1.0
    """
    _series(predicted, gold)  # the ranks are of the values as they came: scaling could make close ones equal
    ranks = [torch.from_numpy(rankdata(own.detach().double().cpu().numpy())) for own in (predicted, gold)]
    return pearson(*ranks)


def _series(predicted: Tensor, gold: Tensor) -> tuple[Tensor, Tensor]:
    """Check two series, and scale them in float64 so that squares neither overflow nor underflow."""
    if predicted.shape != gold.shape or predicted.ndim != 1:
        raise ValueError(
            f"`predicted` and `gold` must be of one length, got {tuple(predicted.shape)} and {tuple(gold.shape)}."
        )
    series = []
    for values, name in ((predicted, "predictions"), (gold, "gold scores")):
        values = values.detach().double().cpu()
        if len(values) < 2:
            raise UndefinedCorrelation(f"the {name} are fewer than two")
        if not values.isfinite().all():
            raise UndefinedCorrelation(f"{int((~values.isfinite()).sum())} of the {name} are not finite")
        if (values == values[0]).all():
            raise UndefinedCorrelation(f"the {name} are constant")
        series.append((values - values.mean()) / (values.max() - values.min()))
    return series[0], series[1]
