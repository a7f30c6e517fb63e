"""Losses, as pure functions on float32 tensors. A configuration names one by its import path.

* scored pairs, on predictions and gold scores, both (B,): `mse`, `log_mse`, `variance`, `log_variance`, `pearson`;
  for cosines also `cosent`, `soft_cosent` and `cosine_mse`;
* triplets, on unit vectors: `multiple_negatives_ranking`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from embedlab.errors import UserError

__all__ = [
    "PairLoss",
    "compares_rows",
    "cosent",
    "cosine_mse",
    "log_mse",
    "log_variance",
    "mse",
    "multiple_negatives_ranking",
    "pearson",
    "soft_cosent",
    "variance",
]

PairLoss = Callable[[Tensor, Tensor], Tensor]


def compares_rows(loss: PairLoss) -> bool:
    """Tell whether a loss of scored pairs is more than the mean over them, so that smaller batches cannot stand for one.

    It is where its value for four pairs is not the mean of the values for two and two, as that of CoSENT.

    >>> compares_rows(mse), compares_rows(cosent)
    (False, True)
    """
    predicted, gold = torch.tensor([0.9, 0.1, 0.6, 0.3]), torch.tensor([0.2, 0.7, 1.0, 0.5])
    halves = [loss(predicted[own], gold[own]) for own in (slice(2), slice(2, 4))]
    return not torch.isclose(loss(predicted, gold), torch.stack(halves).mean(), rtol=1e-4)


def mse(predicted: Tensor, gold: Tensor) -> Tensor:
    """Mean squared error of predictions (B,) against gold scores (B,), as a scalar ()."""
    return functional.mse_loss(predicted, gold)


def log_mse(predicted: Tensor, gold: Tensor) -> Tensor:
    """Natural logarithm of the mean squared error of predictions (B,) against gold (B,), as a scalar ().

    1e-8 inside the logarithm keeps value and gradient finite for a perfect batch.
    """
    return torch.log(mse(predicted, gold) + 1e-8)


def variance(predicted: Tensor, gold: Tensor) -> Tensor:
    """Unbiased variance of the residuals of predictions (B,) against gold (B,), as a scalar ().

    Raises:
        ValueError: If the batch holds fewer than two pairs, for which it is undefined.
    """
    if len(predicted) < 2:
        raise UserError(
            f"`data.batch_size` must be at least 2 pairs for a loss by variance, got a batch of {len(predicted)}; raise it, or "
            "give more rows."
        )
    return (predicted - gold).var(correction=1)


def log_variance(predicted: Tensor, gold: Tensor) -> Tensor:
    """Natural logarithm of the variance of the residuals (FREEZE, section 4.1.1), as a scalar ().

    A constant shift of all predictions does not change it.

    Paper silent: the estimator; the authors' code uses the unbiased one, as here.
    Differs from the paper: 1e-8 is added inside the logarithm. Without it a batch of equal residuals gives
    minus infinity and a gradient that is not a number.

    Args:
        predicted: Predicted scores, (B,).
        gold: Gold scores, (B,).

    Raises:
        ValueError: If the batch holds fewer than two pairs.
    """
    return torch.log(variance(predicted, gold) + 1e-8)


def pearson(predicted: Tensor, gold: Tensor) -> Tensor:
    """One minus Pearson's correlation of predictions (B,) with gold scores (B,) in a batch, a scalar () of 0 to 2.

    Neither a shift nor a positive factor of the predictions changes it. Where either is constant it is 1; 1e-12 beside
    the variances keeps it finite there, and takes deviations of less than some 1e-5 for none.

    Raises:
        ValueError: If the batch holds fewer than two pairs, for which it is undefined.
    """
    if len(predicted) < 2:
        raise UserError(
            f"`data.batch_size` must be at least 2 pairs for a loss by correlation, got a batch of {len(predicted)}; raise it, "
            "or give more rows."
        )
    residuals = predicted - predicted.mean(), gold - gold.mean()
    sizes = [(own.square().mean() + 1e-12).sqrt() for own in residuals]
    return 1 - (residuals[0] * residuals[1]).mean() / (sizes[0] * sizes[1])


def cosine_mse(cosine: Tensor, gold: Tensor) -> Tensor:
    """Mean squared error of cosines (B,) against gold scores (B,) in 0 to 1, as a scalar ()."""
    return mse(cosine, gold)


def cosent(cosine: Tensor, gold: Tensor, scale: float = 20.0) -> Tensor:
    """CoSENT: penalises text pairs ranked against the gold order (Su, 2022, "CoSENT").

        L = log(1 + sum over i, j with gold_i > gold_j of exp(scale * (cos_j - cos_i)))

    It is 0 for a batch in which all gold scores are equal.

    Args:
        cosine: Cosines of B text pairs, (B,).
        gold: Their gold scores, (B,).
        scale: Lambda of the formula, 20 in the original.

    Returns:
        The loss, a scalar (). It is a sum, so it grows with B.

    >>> cosent(torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])).item()
    0.0
    """
    difference = scale * (cosine[None, :] - cosine[:, None])  # (i, j): cos_j - cos_i
    ordered = difference[gold[:, None] > gold[None, :]]
    return torch.logsumexp(torch.cat([ordered.new_zeros(1), ordered]), dim=0)


def soft_cosent(cosine: Tensor, gold: Tensor) -> Tensor:
    """CoSENT at half its scale, 10, as a scalar (): pairs that are ranked wrongly by far outweigh the others by less.

    Args:
        cosine: Cosines of B text pairs, (B,).
        gold: Their gold scores, (B,).
    """
    return cosent(cosine, gold, scale=10.0)


def multiple_negatives_ranking(
    anchor: Tensor, candidate: Tensor, label: Tensor, same: Tensor | None = None, scale: float = 20.0
) -> Tensor:
    """Cross-entropy of each anchor's positive among all candidates (Henderson et al., 2017; SGPT, section 4.1).

        L = -1/B sum_i log softmax_j(scale * cos(anchor_i, candidate_j)) [label_i]

    Args:
        anchor: Unit vectors, (B, E).
        candidate: Unit vectors of all positives and hard negatives, (C, E).
        label: For each anchor the index of its positive among the candidates, (B,).
        same: True where a candidate has the same text as the anchor or its positive, (B, C); such candidates are
            masked.
        scale: Inverse temperature, 20 in the original.

    Returns:
        The loss, a scalar ().
    """
    with torch.autocast(anchor.device.type, enabled=False):  # in bfloat16 logits of 16 and more lie an eighth apart
        logits = scale * anchor.float() @ candidate.float().T
    if same is not None:
        keep = functional.one_hot(label, len(candidate)).bool()
        logits = logits.masked_fill(same & ~keep, -torch.inf)
    return functional.cross_entropy(logits, label)
