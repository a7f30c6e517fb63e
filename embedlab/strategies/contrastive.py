"""The loss of the bi-encoders, over all processes: a pair loss on scored pairs, a ranking loss on triplets."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from embedlab.data import Pairs, Triplets
from embedlab.distributed import gather, gather_lists
from embedlab.errors import UserError
from embedlab.losses import PairLoss, multiple_negatives_ranking
from embedlab.strategies.base import Embedder

__all__ = ["contrastive_loss"]


def contrastive_loss(strategy: Embedder, batch: Pairs | Triplets, pair_loss: PairLoss, scale: float) -> Tensor:
    """Return the loss of a bi-encoder, a scalar (): `pair_loss` on scored pairs, ranking on triplets.

    In ranking, the candidates of every anchor are all positives and all hard negatives of the batch. A candidate whose
    text equals the anchor or its positive is masked. Where several processes share a batch, each computes the loss of
    the whole batch.
    Differs from the paper: SGPT's loader keeps equal texts out of a batch instead.

    Args:
        strategy: Embeds the texts; of triplets, anchors as queries and candidates as documents.
        batch: B scored pairs, or B triplets with any number of hard negatives each.
        pair_loss: From cosines (B,) and gold scores (B,) to a scalar.
        scale: Inverse temperature of the ranking.

    Raises:
        UserError: If `pair_loss` gives anything else.
    """
    if isinstance(batch, Pairs):
        return _scalar(pair_loss, gather(strategy.score(*batch.sides)), gather(cast(Tensor, batch.score)))
    hard = [text for own in batch.negatives for text in own]
    anchor = functional.normalize(strategy.embed(batch.anchor, "query"), dim=-1)
    vectors = functional.normalize(strategy.embed([*batch.positive, *hard], "document"), dim=-1)
    anchor, positive, negative = (gather(own) for own in (anchor, vectors[: len(batch)], vectors[len(batch) :]))
    pairs = gather_lists(list(zip(batch.anchor, batch.positive, strict=True)))
    candidates = [*(text for _, text in pairs), *gather_lists(hard)]
    same = torch.tensor([[text in pair for text in candidates] for pair in pairs], device=anchor.device)
    label = torch.arange(len(pairs), device=anchor.device)
    return multiple_negatives_ranking(anchor, torch.cat([positive, negative]), label, same, scale)


def _scalar(pair_loss: PairLoss, cosine: Tensor, gold: Tensor) -> Tensor:
    """Return the loss of scored pairs; refuse what cannot be trained on, which would be laid to the strategy."""
    loss: Any = pair_loss(cosine, gold)
    if not isinstance(loss, Tensor):
        came = "None" if loss is None else f"an object of {type(loss).__name__}"
    elif loss.ndim or not loss.is_floating_point():
        came = f"a tensor of shape {tuple(loss.shape)} and type {str(loss.dtype).removeprefix('torch.')}"
    elif cosine.requires_grad and not loss.requires_grad:
        came = "a tensor without gradient"
    else:
        return loss
    name = f"{pair_loss.__module__}.{getattr(pair_loss, '__qualname__', type(pair_loss).__name__)}"
    raise UserError(
        f"`pair_loss` must give a scalar, a float tensor of shape () that depends on the cosines, but {name} gave {came}; "
        "average over the pairs, and detach nothing."
    )
