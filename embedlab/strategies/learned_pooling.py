"""Learned pooling over the token states of a frozen decoder, read in the second copy of a repeated text.

Springer et al., 2024. Repetition Improves Language Model Embeddings. arXiv:2402.15449, section 3: the second copy of a
text is read with the whole text in view. Lin et al., 2017. A Structured Self-Attentive Sentence Embedding.
arXiv:1703.03130, section 2.1: a small network weighs the tokens. Here it does so in several layers:

    w_s(t) = softplus(MLP_s(x_s(t), rarity, place, length)),   m_s = sum_t w_s(t) x_s(t) / sum_t w_s(t)
    vector = sum_s P_s m_s

It mends by design what is weak in FREEZE: one vector per text, so that equal texts score highest and the order of two
texts does not matter; a final stop and capital letters are not read; .55 M parameters where FREEZE has 15 to 25 M.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import Tensor

from embedlab import losses
from embedlab.backbone import Backbone, Layer
from embedlab.backbone.features import FinalPunctuation
from embedlab.backbone.token_states import TokenStates
from embedlab.data import Pairs, Triplets
from embedlab.errors import UserError
from embedlab.losses import PairLoss
from embedlab.strategies.base import Batch, Embedder, Role, Trainable, Training
from embedlab.strategies.contrastive import compares_rows, contrastive_loss
from embedlab.strategies.token_pooling import TokenPooling
from embedlab.strategies.whitening import too_few

__all__ = ["LearnedPooling"]

ECHO = "Rewrite the following sentence: {}\nRewritten sentence: {}"
TRAINING = Training(1e-3, weight_decay=0.05, warmup=0.07, decay=True)
PART = 512  # texts whose states are in memory while statistics are computed


@final
class LearnedPooling(Trainable, Embedder):
    """Token states of a frozen decoder, weighed and mapped to one vector by small networks.

    Args:
        backbone: The decoder; never trained.
        layers: Layers whose states are read: 0 the embeddings, l the output of block l, `final` behind the final norm; None is
            the embeddings, 8/15 of the blocks, and `final`.
        template: What the decoder reads, with `{}` once or more for the text, whose last copy counts.
        final_punctuation: Whether a final . ! or ? stays, is taken off, or is added where missing.
        lower_case: Whether texts are read in lower case.
        size: Size of the vector.
        hidden: Units between a token's states and its weight.
        dropout: Share of coordinates dropped while training.
        pair_loss: Loss on scored pairs, from cosines and gold scores.
        scale: Inverse temperature of the ranking loss on triplets.
        training: Learning rate, decay, warm-up and clipping.
    """

    departures = ("neither paper trains this: layers, networks, losses and rates are ours",)
    decides_no_score = ("dropout", "pair_loss", "scale")
    symmetric = True
    rarity: Tensor

    def __init__(
        self,
        backbone: Backbone,
        layers: Sequence[Layer] | None = None,
        template: str = ECHO,
        final_punctuation: FinalPunctuation = "strip",
        lower_case: bool = True,
        size: int = 256,
        hidden: int = 64,
        dropout: float = 0.2,
        pair_loss: PairLoss = losses.soft_cosent,
        scale: float = 20.0,
        training: Training = TRAINING,
    ) -> None:
        super().__init__()
        for name, number in {"size": size, "hidden": hidden}.items():
            if number < 1:
                raise UserError(f"`{name}` must be at least 1, got {number}; raise it, or leave it out.")
        if not 0 <= dropout < 1:
            raise UserError(f"`dropout` must be at least 0 and less than 1, got {dropout}; 0 is none.")
        if not 0 < scale < float("inf"):
            raise UserError(f"`scale` must be positive and finite, got {scale}; 20 is usual.")
        self.backbone: Backbone = backbone
        self.features: TokenStates = TokenStates(backbone, layers, template, final_punctuation, lower_case)
        self.size, self.hidden, self.dropout, self.built = size, hidden, dropout, False
        self.pair_loss, self.scale, self.plan = pair_loss, scale, training

    def configure_model(self) -> None:
        """Load the decoder; build what weighs tokens, and the projection."""
        self.backbone.load()
        if not self.built:
            shape = (len(self.features.layers), self.backbone.width)
            self.pooling = TokenPooling(*shape, self.size, self.hidden, self.dropout)
            self.register_buffer("rarity", torch.ones(len(self.backbone.tokenization.content)))
            self.built = True

    @torch.no_grad()
    def prepare(self, texts: Sequence[str]) -> None:
        """Compute from the training texts how states are scaled, how rare tokens are, and where the projection starts."""
        texts = [*{self.features.as_read(text): text for text in texts}.values()]
        self.precompute(texts, self.progress)
        self._scale(texts)
        self.pooling.eval()
        total, products = torch.zeros(1), torch.zeros(1)
        for part in _parts(texts):
            means = self.pooling.means(*self._tokens(part)).double().cpu()
            total, products = total + means.sum(0), products + means.T @ means
        self.pooling.train(self.training)
        mean = total / len(texts)
        self.pooling.start(products / len(texts) - torch.outer(mean, mean))

    def doubts(self, texts: int) -> Sequence[str]:
        """Say so where there are no more texts than components with which the projection starts."""
        wanted = min(self.size, len(self.features.layers) * self.backbone.width)
        return too_few(texts, wanted, "the projection starts", "of which the last ones are arbitrary until it learns")

    def _scale(self, texts: Sequence[str]) -> None:
        """Compute mean and deviation of the states of all tokens, and inverse document frequencies."""
        self.pooling.scale_by(torch.cat(self.features.get(part)) for part in _parts(texts))
        found: Counter[int] = Counter()
        for part in _parts(texts):
            for ids in self.features.ids(part):
                found.update(set(ids))
        texts_with = torch.zeros(len(self.rarity))
        texts_with[list(found)] = torch.tensor(list(found.values()), dtype=torch.float)
        rarity = ((len(texts) + 1) / (texts_with + 1)).log() + 1  # inverse document frequency, smoothed
        self.rarity.copy_(rarity / rarity.max())

    def embed(self, texts: Sequence[str], role: Role | None = None) -> Tensor:
        """Pool the states of texts, (B, E), the same in either role; equal texts once."""
        distinct = sorted({*texts})  # in an order that the sides of a pair do not change, nor then the rounding
        vectors = self.pooling.forward(*self._tokens(distinct))
        numbers = {text: number for number, text in enumerate(distinct)}
        return vectors[[numbers[text] for text in texts]]

    def _tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Return states, rarity, place and length of all tokens of texts, and their number, as the network takes them."""
        states, ids = self.features.get(texts), self.features.ids(texts)
        lengths = torch.tensor([*map(len, ids)], device=self.device)
        ends = lengths.repeat_interleave(lengths)
        place = torch.cat([torch.arange(len(own), device=self.device) for own in ids])
        rarity = self.rarity[torch.tensor([token for own in ids for token in own], device=self.device)]
        extra = torch.stack([rarity, place / (ends - 1).clamp_min(1), 1 / ends], dim=1)
        return torch.cat(states).to(self.device), extra, lengths

    def loss(self, batch: Pairs | Triplets) -> Tensor:
        """Return the pair loss of scored pairs, or the ranking loss of triplets, ()."""
        return contrastive_loss(self, batch, self.pair_loss, self.scale)

    def compares_rows(self, batch: Batch) -> bool:
        """Tell whether the loss of such a batch compares its rows, as that of triplets does."""
        return compares_rows(batch, self.pair_loss)


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    return (texts[start : start + PART] for start in range(0, len(texts), PART))
