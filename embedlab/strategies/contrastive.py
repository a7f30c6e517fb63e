"""The loss of the bi-encoders, over all processes: a pair loss on scored pairs, a ranking loss on triplets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from embedlab import losses
from embedlab.backbone.tuning import Frozen, Tuning
from embedlab.data import Pairs, Triplets
from embedlab.data.apart import as_compared
from embedlab.distributed import gather, gather_lists
from embedlab.errors import UserError
from embedlab.losses import PairLoss, multiple_negatives_ranking
from embedlab.strategies.base import Batch, Embedder, Trainable

__all__ = ["check_chunk_size", "compares_rows", "contrastive_loss"]


def contrastive_loss(strategy: Embedder, batch: Pairs | Triplets, pair_loss: PairLoss, scale: float) -> Tensor:
    """Return the loss of a bi-encoder, a scalar (): `pair_loss` on scored pairs, ranking on triplets.

    In ranking, the candidates of every anchor are all positives and all hard negatives of the batch. A candidate whose
    text equals the anchor or its positive, but for case and blanks around it, is masked. Where several processes share a
    batch, each computes the loss of the whole batch. How many negatives an anchor has, on average, is logged as
    `train/negatives`.
    Differs from the paper: SGPT's loader keeps equal texts out of a batch, as ours does where the rows allow it; what is
    left is masked.

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
    numbers: dict[str, int] = {}
    anchors, positives, negatives = (
        _numbered(gather_lists(own), numbers).to(anchor.device) for own in (batch.anchor, batch.positive, hard)
    )
    candidates = torch.cat([positives, negatives])
    same = (candidates == anchors[:, None]) | (candidates == positives[:, None])
    if isinstance(strategy, Trainable):
        strategy.record("negatives", (~same).sum() / len(same))
    label = torch.arange(len(same), device=anchor.device)
    return multiple_negatives_ranking(anchor, torch.cat([positive, negative]), label, same, scale)


def compares_rows(batch: Batch, pair_loss: PairLoss) -> bool:
    """Tell whether the loss of a batch is more than the mean over its rows, so that smaller batches cannot stand for it.

    The ranking of triplets is, as rows are each other's negatives, and some losses on scored pairs are.

    Args:
        batch: Some batch of the training.
        pair_loss: The loss on scored pairs.

    >>> compares_rows(Pairs([], []), functional.mse_loss)
    False
    """
    if not isinstance(batch, Pairs):
        return True
    return losses.compares_rows(lambda cosine, gold: _scalar(pair_loss, cosine, gold))


def check_chunk_size(chunk_size: int | None, tuning: Tuning) -> None:
    """Refuse a size of chunks that is none, or that would change nothing.

    Raises:
        UserError: If it is below 1, or given for a decoder that holds no activations as it does not train.
    """
    if chunk_size is not None and chunk_size < 1:
        raise UserError(
            f"`chunk_size` must be at least 1 text, got {chunk_size}; leave it out to compute a batch in one pass."
        )
    if chunk_size is not None and isinstance(tuning, Frozen):
        raise UserError(
            f"`chunk_size` must be left out where `tuning` is Frozen, as no activations are held, got {chunk_size}; leave it out."
        )


def _numbered(texts: Sequence[str], numbers: dict[str, int]) -> Tensor:
    """Return a number for each text, equal for equal texts, (B,); new texts are added to `numbers`."""
    return torch.tensor([numbers.setdefault(as_compared(text), len(numbers)) for text in texts], dtype=torch.long)


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
