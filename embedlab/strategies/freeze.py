"""FREEZE: learn from the latents of every block of a decoder that is never touched.

McDonald, Marsano and McLaughlin, 2024. FREEZE!: Pretrained Language Models as Frozen Feature Extractors for
Semantic Tasks. Brown University, sections 3.2 and 4.

    z_l = block output l at one token                     (section 3.2: "after the residual connection")
    stage 1   min over E_l, G_l of |G_l(E_l(z_l)) - z_l|^2    one autoencoder per block, plain sentences
    stage 2   c_l = cos(E_l(z_l(a)), E_l(z_l(b))),   y = HardSigmoid(MLP(c_1 .. c_L))
              loss = log Var(y - gold)                     (section 4.1.1)

Nothing of the encoders is frozen in stage 2 (the authors' code; the text leaves it open).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from embedlab import losses, pooling
from embedlab.backbone import Backbone
from embedlab.data import Pairs, Source, Texts
from embedlab.errors import UserError
from embedlab.latents import FinalPunctuation, Latents
from embedlab.layerwise import CosineHead, LayerwiseAutoencoder
from embedlab.losses import PairLoss
from embedlab.pooling import Pooling
from embedlab.strategies.base import Stage, Trainable, Training

__all__ = ["Freeze", "Pretraining"]

WIDTHS = (256, 512)  # bottlenecks of the lower and the upper half of the blocks, section 4.2.3
PAPER_WIDTH, DROPOUT = 1024, 0.1  # of gpt2-medium, for which they were chosen; Paper silent: dropout (the code has 0.1)
# The authors' code: Adam, constant rate, no decay, 150 epochs, batch 128, a look every 10 epochs.
# Differs from the paper: looks at validation, never test data; clipped gradients; latents, products in bfloat16.
TRAINING = Training(3e-4, weight_decay=0, warmup=0, decay=False, epochs=150, batch_size=128, validate_every=10)
# The authors' code: 3e-4 at the first to 5.9e-4 at the last block, 250 epochs over 20,000 sentences.
# Differs from the paper: one rate for all blocks, their mean; far fewer epochs, as the latents fit soon.
PRETRAINING = Training(4.4e-4, weight_decay=0.01, warmup=0, decay=False, epochs=10, batch_size=64)


@dataclass
class Pretraining:
    """Stage 1: autoencoders on plain sentences.

    Args:
        source: Where the sentences come from. Paper silent: which 20,000 of GenericsKB.
        training: How the autoencoders learn.
    """

    source: Source
    training: Training = PRETRAINING


@final
class Freeze(Trainable):
    """Layerwise autoencoders, then a siamese network over all blocks of a frozen decoder.

    Args:
        backbone: The decoder; never trained.
        pooling: Which token's state is the latent; `last` in the paper.
        final_punctuation: Whether a final . ! or ? stays, is taken off, or is added where missing.
        bos: Whether a begin-of-text token is put first, as the authors' tool did by default; never pooled.
        standardize: Whether each coordinate of the latents is scaled by mean and deviation of the training texts.
        widths: Bottlenecks of equal shares of the blocks, lower first, at width 1024; scaled to the decoder's.
        loss: From predictions and gold scores to a scalar; `log_variance` in the paper.
        pretraining: Stage 1; None leaves it out.
        training: How stage 2 learns.
    """

    learns_from = (Pairs,)
    mean: Tensor
    scale: Tensor
    coders: LayerwiseAutoencoder
    head: CosineHead

    def __init__(
        self,
        backbone: Backbone,
        pooling: Pooling = pooling.last,
        final_punctuation: FinalPunctuation = "keep",
        bos: bool = True,
        standardize: bool = False,
        widths: Sequence[int] = WIDTHS,
        loss: PairLoss = losses.log_variance,
        pretraining: Pretraining | None = None,
        training: Training = TRAINING,
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise UserError(f"`widths` must be one or more positive bottlenecks, got {list(widths)}.")
        self.backbone: Backbone = backbone
        self.latents = Latents(backbone, pooling, final_punctuation, bos)
        self.standardize, self.widths, self.pair_loss = standardize, tuple(widths), loss
        self.pretraining, self.plan = pretraining, training

    def configure_model(self) -> None:
        """Load the decoder; build one encoder per block and the head; decoders only for stage 1."""
        self.backbone.load()
        layers, width = self.backbone.num_layers, self.backbone.width
        if not hasattr(self, "coders"):
            widths = [max(8, self.widths[i * len(self.widths) // layers] * width // PAPER_WIDTH) for i in range(layers)]
            self.coders, self.head = LayerwiseAutoencoder(width, widths, DROPOUT), CosineHead(layers, DROPOUT)
            self.register_buffer("mean", torch.zeros(layers, width))
            self.register_buffer("scale", torch.ones(layers, width))
        self.coders.keep_decoders(self.stage is not None)

    def stages(self) -> tuple[Stage, ...]:
        """Stage 1, where asked for (section 4.2.3)."""
        if (own := self.pretraining) is None:
            return ()
        return (Stage("autoencoders", own.source, own.training, self.reconstruction, trains="coders"),)

    def prepare(self, texts: Sequence[str]) -> None:
        """Take mean and deviation of each coordinate of the training latents (section 3.2)."""
        if self.standardize:
            self.warm(texts)
            latents = self._standardized(texts).double()
            self.mean.copy_(latents.mean(0))
            self.scale.copy_(latents.std(0).clamp_min(1e-6))

    def warm(self, texts: Sequence[str]) -> None:
        """Read the latents of texts that are not on disk yet."""
        self.latents.add(texts, self.report)

    def _standardized(self, texts: Sequence[str]) -> Tensor:
        """Fetch latents, (B, L, D), float32; scaled once `prepare` has run."""
        return (self.latents.get(texts).to(self.device).float() - self.mean) / self.scale

    @property
    def feature_bytes(self) -> int:
        """Bytes of latents kept on disk."""
        return self.latents.store.size

    def reconstruction(self, batch: Texts) -> Tensor:
        """Squared error of the autoencoders, summed over blocks, so that each learns as if alone, ()."""
        latents = self._standardized(batch.text)
        with self._precision():
            rebuilt = self.coders.decode(self.coders.encode(latents))
        return functional.mse_loss(rebuilt.float(), latents, reduction="none").mean((0, 2)).sum()

    def score(self, first: Sequence[str], second: Sequence[str]) -> Tensor:
        """Score pairs by the head over the cosines of all blocks, (B,), 0 to 1."""
        latents = self._standardized([*first, *second])
        with self._precision():
            halves = [code.chunk(2, dim=1) for code in self.coders.encode(latents)]
        cosines = torch.cat([functional.cosine_similarity(a.float(), b.float(), dim=-1) for a, b in halves])  # (L, B)
        return self.head.forward(cosines.T)

    def loss(self, batch: Pairs) -> Tensor:
        """Fit the scores of pairs, ()."""
        assert batch.score is not None
        return self.pair_loss(self.score(batch.first, batch.second), batch.score)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.backbone.dtype, enabled=self.backbone.dtype != torch.float32)
