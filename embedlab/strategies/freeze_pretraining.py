"""Stage 1 of FREEZE: what its autoencoders are pretrained on, how (section 4.2.3), and how well they did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from embedlab.data import Source
from embedlab.errors import UserError
from embedlab.strategies.base import Training
from embedlab.strategies.freeze_network import PART, SiameseNetwork
from embedlab.strategies.published import published

__all__ = ["PRETRAINING", "PUBLISHED", "Pretraining", "unexplained"]

# Everything decays; a constant rate, nothing clipped: the authors' code.
PRETRAINING = Training(3e-4, weight_decay=0.01, vectors_decay=True, warmup=0, decay=False, gradient_clip=None)
PUBLISHED = published(
    "the authors' code",
    pretraining__relative=False,
    pretraining__epochs=250,
    pretraining__batch_size=64,
    pretraining__rate_growth=1.0,
    pretraining__training=PRETRAINING,
)


@dataclass
class Pretraining:
    """Stage 1: autoencoders on plain sentences.

    Args:
        source: Where the sentences come from. Paper silent: which 20,000 of GenericsKB.
        epochs: Passes over them. Differs from the paper: 10, not 250, which take hours on two cores. Where stage 2 is short too,
            no pretraining is better than a short one (docs/tried.md).
        batch_size: Sentences of a batch.
        training: Learning rate, decay and so on of the autoencoders.
        rate_growth: Block l of L, counted from 0, learns at the rate times 1 + rate_growth * l / L.
        relative: Whether each block's error is divided by the variance of its latents. Differs from the paper, whose later
            blocks have the larger latents and so the larger errors (figure 2).
    """

    source: Source
    epochs: int = 10
    batch_size: int = 64
    training: Training = PRETRAINING
    rate_growth: float = 1.0
    relative: bool = False

    def __post_init__(self) -> None:
        for name, least in {"epochs": 1, "batch_size": 1, "rate_growth": 0}.items():
            if not getattr(self, name) >= least:
                way = "; `pretraining: null` leaves the stage out" if name == "epochs" else "; raise it"
                raise UserError(f"`pretraining.{name}` must be at least {least}, got {getattr(self, name)}{way}.")


@torch.no_grad()
def unexplained(
    network: SiameseNetwork, latents: Callable[[Sequence[str]], Tensor], texts: Sequence[str]
) -> dict[str, float]:
    """Return the share of the variance of texts' latents that autoencoders leave unexplained, as the mean of all blocks.

    Unlike the error itself it does not grow with the size of the latents.

    Args:
        network: With decoder halves, in evaluation mode.
        latents: From B texts to their latents, (B, L, D).
        texts: Texts that the autoencoders have not seen; the latents of a part of them are in memory at a time.
    """
    if len({*texts}) < 2:  # there is no variance
        return {}
    errors, total, squares = torch.zeros(1), torch.zeros(1), torch.zeros(1)
    for start in range(0, len(texts), PART):
        own, rebuilt = (part.double().cpu() for part in network.rebuild(latents(texts[start : start + PART])))
        errors = errors + (rebuilt - own).square().sum((0, 2))  # (L,)
        total, squares = total + own.sum(0), squares + own.square().sum(0)  # (L, D)
    spread = (squares - total.square() / len(texts)).sum(-1).clamp_min(1e-12)
    return {"unexplained": float((errors / spread).mean())}
