"""Pooling: from the hidden states of tokens to one vector per text.

Every pooling takes packed states (T, D) and their `PackedBatch` and returns (B, D) in float32, whatever the dtype of
the states. A configuration names a pooling by its import path, such as `embedlab.pooling.weighted_mean`; a function of the
same signature in a user's own module works as well.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from embedlab.packing import PackedBatch

__all__ = ["Pooling", "last", "last_content", "mean", "weighted_mean"]

Pooling = Callable[[Tensor, PackedBatch], Tensor]


def mean(states: Tensor, batch: PackedBatch) -> Tensor:
    """Average the states of a text.

    Args:
        states: One hidden state per token, (T, D).
        batch: The packed texts, B of them.

    Returns:
        One vector per text, (B, D), float32.
    """
    return _weighted(states, torch.ones_like(batch.positions), batch)


def weighted_mean(states: Tensor, batch: PackedBatch) -> Tensor:
    """Average the states of a text, the i-th weighted by i (SGPT, Muennighoff 2022, section 4.1, equation 2).

    A causal decoder's later states have seen more of the text. Every token counts, brackets included.

    Args:
        states: One hidden state per token, (T, D).
        batch: The packed texts, B of them.

    Returns:
        One vector per text, (B, D), float32.
    """
    return _weighted(states, batch.positions + 1, batch)


def last(states: Tensor, batch: PackedBatch) -> Tensor:
    """Take the state of a text's last token.

    Args:
        states: One hidden state per token, (T, D).
        batch: The packed texts, B of them.

    Returns:
        One vector per text, (B, D), float32.
    """
    return states[batch.offsets[1:] - 1].float()


def last_content(states: Tensor, batch: PackedBatch) -> Tensor:
    """Take the state of the last token that holds a letter or a digit, or the last token where none does.

    Unlike `last`, it skips final punctuation.

    Args:
        states: One hidden state per token, (T, D).
        batch: The packed texts, B of them.

    Returns:
        One vector per text, (B, D), float32.
    """
    rank = torch.where(batch.content, batch.positions, -1)
    best = torch.full((len(batch),), -1, device=rank.device, dtype=rank.dtype)
    best = best.scatter_reduce(0, batch.text_of, rank, reduce="amax")
    index = torch.where(best >= 0, batch.offsets[:-1] + best, batch.offsets[1:] - 1)
    return states[index].float()


def _weighted(states: Tensor, weights: Tensor, batch: PackedBatch) -> Tensor:
    """Average states (T, D) by integer weights (T,) within each text; sums are kept in float32."""
    weights = weights.float()
    total = states.new_zeros(len(batch), dtype=torch.float32).index_add(0, batch.text_of, weights)
    share = weights / total[batch.text_of]
    pooled = states.new_zeros(len(batch), states.shape[-1], dtype=torch.float32)
    return pooled.index_add(0, batch.text_of, states.float() * share[:, None])
