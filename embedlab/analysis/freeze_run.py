"""What each block gives to the scores of a finished FREEZE run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from embedlab.metrics import UndefinedCorrelation, pearson, spearman
from embedlab.strategies.freeze import Freeze
from embedlab.strategies.freeze_network import CosineHead

__all__ = ["Blocks", "blocks_of", "cosines_of"]

PAIRS: Final = 256  # read at a time


@final
@dataclass(frozen=True)
class Blocks:
    """Numbers of a run and of each of its L blocks; correlations are Pearson's and Spearman's, None where undefined.

    Attributes:
        whole: Correlations of the scores with gold.
        alone: Correlations of each block's cosine with gold.
        masked: Correlations of the scores where a block's cosine is replaced by its mean over the pairs.
        gradient: Mean and standard deviation over the pairs of the score's derivative by each cosine, (L,) each.
        cosine: Mean and standard deviation of each cosine over the pairs, (L,) each.
        saturated: Share of pairs whose score is exactly 0 or 1, where the derivative is 0.
    """

    whole: tuple[float | None, float | None]
    alone: list[tuple[float | None, float | None]]
    masked: list[tuple[float | None, float | None]]
    gradient: tuple[Tensor, Tensor]
    cosine: tuple[Tensor, Tensor]
    saturated: float


def cosines_of(strategy: Freeze, first: Sequence[str], second: Sequence[str]) -> Tensor:
    """Return the cosines of every block for B pairs, (B, L), float32."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(first), PAIRS):
            end = start + PAIRS
            latents = strategy.latents([*first[start:end], *second[start:end]])
            parts.append(strategy.siamese.cosines(latents))
    return torch.cat(parts).float().cpu()


def blocks_of(head: CosineHead, cosines: Tensor, gold: Tensor) -> Blocks:
    """Take a head apart by the cosines of B pairs.

    Args:
        head: Maps cosines (B, L) to scores (B,); in evaluation mode.
        cosines: Of each block, (B, L).
        gold: Gold scores, (B,).
    """
    device = next(head.parameters()).device
    seen = cosines.detach().to(device).requires_grad_()
    scores = head.forward(seen)
    (gradient,) = torch.autograd.grad(scores.sum(), seen)
    masked = []
    for block in range(cosines.shape[1]):
        changed = seen.detach().clone()
        changed[:, block] = changed[:, block].mean()
        with torch.no_grad():
            masked.append(_correlations(head.forward(changed), gold))
    scores, gradient = scores.detach().cpu(), gradient.double().cpu()
    return Blocks(
        _correlations(scores, gold),
        [_correlations(own, gold) for own in cosines.unbind(1)],
        masked,
        (gradient.mean(0), gradient.std(0)),
        (cosines.double().mean(0), cosines.double().std(0)),
        float(((scores == 0) | (scores == 1)).double().mean()),
    )


def _correlations(scores: Tensor, gold: Tensor) -> tuple[float | None, float | None]:
    try:
        return pearson(scores, gold), spearman(scores, gold)
    except UndefinedCorrelation:
        return None, None
