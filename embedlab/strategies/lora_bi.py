"""LoRA bi-encoder: train low-rank adapters in the decoder, pool its final hidden states.

Hu et al., 2021. LoRA: Low-Rank Adaptation of Large Language Models. arXiv:2106.09685, section 4.1.

    h = W0 x + (alpha / r) B A x,   A ~ N(0, s^2), B = 0 at the start, W0 frozen

As a text embedder it is the common recipe for decoders of this size (rank 16, every linear layer).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor

from embedlab import losses, pooling
from embedlab.backbone import Backbone
from embedlab.backbone.tuning import LoRA
from embedlab.data import Pairs, Triplets
from embedlab.errors import UserError
from embedlab.losses import PairLoss
from embedlab.pooling import Pooling
from embedlab.strategies.base import Batch, Embedder, Recipe, Role, Trainable, Training
from embedlab.strategies.contrastive import check_chunk_size, compares_rows, contrastive_loss

__all__ = ["LoRABiEncoder"]

# Paper silent: embedders. LLM2Vec and E5-mistral train rank 16 at 1e-4 to 2e-4 on decoders of 7B parameters; one
# of 135M wants more (docs/tried.md).
TRAINING = Training(learning_rate=1e-3, weight_decay=0.01, warmup=0.1, decay=True)


@final
class LoRABiEncoder(Trainable, Embedder):
    """Pooled final hidden states of a decoder with low-rank adapters.

    Args:
        backbone: The decoder.
        rank: r, the rank of each update.
        alpha: The update is scaled by alpha / rank.
        dropout: Dropout on the adapters' input; on a processor it costs a quarter of each step, so it is off.
        targets: Names of the layers that get an adapter; None is every linear layer of the blocks.
        pooling: From token states to one vector.
        pair_loss: Loss on scored pairs, from cosines and gold scores.
        scale: Inverse temperature of the ranking loss on triplets.
        chunk_size: Texts whose activations are held at a time (gradient caching); None holds those of a batch.
        training: Learning rate, decay, warm-up and clipping.
    """

    departures = ("the paper embeds no texts; rank, rate, pooling and losses are the common recipe",)
    decides_no_score = ("chunk_size", "dropout", "pair_loss", "scale")
    symmetric = True

    def __init__(
        self,
        backbone: Backbone,
        rank: int = 16,
        alpha: float = 32.0,
        dropout: float = 0.0,
        targets: list[str] | None = None,
        pooling: Pooling = pooling.weighted_mean,
        pair_loss: PairLoss = losses.cosent,
        scale: float = 20.0,
        chunk_size: int | None = None,
        training: Training = TRAINING,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise UserError(f"`rank` must be at least 1, got {rank}; raise it, or leave it out.")
        if not 0 <= dropout < 1:
            raise UserError(f"`dropout` must be at least 0 and less than 1, got {dropout}; 0 is none.")
        for name, factor in {"alpha": alpha, "scale": scale}.items():
            if not 0 < factor < float("inf"):
                raise UserError(f"`{name}` must be positive and finite, got {factor}; leave it out for the default.")
        self.backbone: Backbone = backbone
        self.tuning = LoRA(rank, alpha, dropout, targets)
        check_chunk_size(chunk_size, self.tuning)
        self.pooling, self.chunk_size = pooling, chunk_size
        self.pair_loss, self.scale, self.plan = pair_loss, scale, training

    def check_decoder(self) -> None:
        """Refuse targets that the decoder lacks."""
        if self.tuning.targets:
            self.tuning.check(self.backbone.files.empty())

    def configure_model(self) -> None:
        """Load the decoder and add the adapters."""
        self.backbone.load(self.tuning)

    def embed(self, texts: Sequence[str], role: Role | None = None) -> Tensor:
        """Pool the final hidden states of texts, (B, D), the same in either role."""
        return self.backbone.pool(texts, self.pooling, chunk_size=self.chunk_size)[:, 0]

    def recipe(self) -> Recipe:
        """Return its pooling; the adapters belong to the decoder."""
        return Recipe(self.pooling)

    def loss(self, batch: Pairs | Triplets) -> Tensor:
        """Return the pair loss of scored pairs, or the ranking loss of triplets, ()."""
        return contrastive_loss(self, batch, self.pair_loss, self.scale)

    def compares_rows(self, batch: Batch) -> bool:
        """Tell whether the loss of such a batch compares its rows, as that of triplets does."""
        return compares_rows(batch, self.pair_loss)
