"""SGPT bi-encoder: train the biases of a decoder, average its final hidden states with weights that grow with position.

Muennighoff, 2022. SGPT: GPT Sentence Embeddings for Semantic Search. arXiv:2202.08904, section 4.

    v = sum_i w_i h_i,   w_i = i / sum_j j                                              (equation 2)
    J = -1/B sum_i log  exp(20 cos(q_i, d_i)) / sum_j exp(20 cos(q_i, d_j))             (equation 3)

For search, queries and documents are marked by brackets, [query] and {document}, as token ids. Batches are large by
gradient caching: Gao et al., 2021. Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup.
arXiv:2101.06983, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import final

from torch import Tensor, nn

from embedlab import losses, pooling
from embedlab.backbone import Backbone
from embedlab.backbone.tuning import BitFit, Frozen, Tuning
from embedlab.data import Pairs, Triplets
from embedlab.errors import UserError
from embedlab.losses import PairLoss
from embedlab.pooling import Pooling
from embedlab.strategies.base import Batch, Embedder, Recipe, Role, Trainable, Training
from embedlab.strategies.contrastive import check_chunk_size, compares_rows, contrastive_loss
from embedlab.strategies.published import published

__all__ = ["SGPTBiEncoder"]

BRACKETS = {"query": ("[", "]"), "document": ("{", "}")}  # section 4.2
SCALE = 20.0  # the authors' training script

# The authors' script; the rate is None as it depends on what biases the decoder has.
TRAINING = Training(learning_rate=None, weight_decay=0.01, warmup=0.1, decay=True, gradient_clip=1.0)
RATE = 3.2e-4  # of the published NLI models (the authors' README); their runs on biases lie between 5e-5 and 8e-4
# Differs from the paper: biases that start at zero have further to go; at twice this, some seeds diverge
# (docs/tried.md).
ADDED_RATE = 1e-3


@final
class SGPTBiEncoder(Trainable, Embedder):
    """Position-weighted mean of the final hidden states, with only biases trained.

    Args:
        backbone: The decoder.
        pooling: From token states to one vector.
        brackets: Whether queries and documents are put in brackets, in training and in scoring.
        tuning: What trains in the decoder; None is BitFit.
        linear: Width of a linear layer on the pooled vector, which trains too; None is no layer.
        pair_loss: Loss on scored pairs, from cosines and gold scores.
        scale: Inverse temperature of the ranking loss on triplets.
        chunk_size: Texts whose activations are held at a time (gradient caching); None holds those of a batch.
        training: Settings of the optimiser. A learning rate of None is the published one where the decoder has biases,
            and a higher one where zero biases are added.
    """

    paper = published("section 4.1", pooling=pooling.weighted_mean, tuning="BitFit", linear=None) | published(
        "the authors' script",
        scale=SCALE,
        training__weight_decay=0.01,
        training__vectors_decay=False,
        training__warmup=0.1,
        training__decay=True,
        training__gradient_clip=1.0,
    )
    departures = (
        "scored pairs are not trained on in the paper, the loss on them is ours",
        "of equal texts that a batch cannot do without none is a negative of the other; the authors allow none",
    )
    decides_no_score = ("chunk_size", "pair_loss", "scale", "tuning.dropout")

    def __init__(
        self,
        backbone: Backbone,
        pooling: Pooling = pooling.weighted_mean,
        brackets: bool = False,
        tuning: Tuning | None = None,
        linear: int | None = None,
        pair_loss: PairLoss = losses.cosent,
        scale: float = SCALE,
        chunk_size: int | None = None,
        training: Training = TRAINING,
    ) -> None:
        super().__init__()
        if not 0 < scale < float("inf"):
            raise UserError(f"`scale` must be positive and finite, got {scale}; leave it out for the default.")
        tuning = tuning or BitFit()
        check_chunk_size(chunk_size, tuning)
        if linear is not None and linear < 1:
            raise UserError(f"`linear` must be at least 1, got {linear}; leave it out for no layer.")
        if linear is None and isinstance(tuning, Frozen):
            raise UserError(
                "`linear` must be given where `tuning` is Frozen, or nothing would train, got none; set it, such as to 768."
            )
        if training.learning_rate is None and not isinstance(tuning, BitFit):
            raise UserError(
                f"`training.learning_rate` must be given where `tuning` is {type(tuning).__name__}, got none; only that "
                "of BitFit is published."
            )
        self.compare_with_paper(locals())
        self.backbone: Backbone = backbone
        self.pooling, self.brackets, self.tuning, self.chunk_size = pooling, brackets, tuning, chunk_size
        self.linear = nn.Identity() if linear is None else nn.Linear(backbone.width, linear)
        self.symmetric = not brackets
        self.pair_loss, self.scale, self.plan, self.decided = pair_loss, scale, training, False

    def check_decoder(self) -> None:
        """Refuse a tuning that the decoder does not fit."""
        if type(self.tuning).check is not Tuning.check:
            self.tuning.check(self.backbone.files.empty())

    def configure_model(self) -> None:
        """Load the decoder, choose its trainable parameters and the learning rate."""
        self.backbone.load(self.tuning)
        if not self.decided:
            added = isinstance(self.tuning, BitFit) and self.tuning.added > 0
            rate = self.plan.learning_rate or (ADDED_RATE if added else RATE)
            self.plan, self.decided = replace(self.plan, learning_rate=rate), True
            self.compare_with_paper({"training": self.plan}, published("the NLI models", training__learning_rate=RATE))

    def embed(self, texts: Sequence[str], role: Role | None = None) -> Tensor:
        """Pool the final hidden states of texts, in the brackets of their role, (B, D), or (B, linear)."""
        prefix, suffix = self._bracket_ids(role)
        vectors = self.backbone.pool(texts, self.pooling, prefix=prefix, suffix=suffix, chunk_size=self.chunk_size)
        projected: Tensor = self.linear(vectors[:, 0])
        return projected

    def recipe(self) -> Recipe:
        """Return its pooling and brackets; what was tuned belongs to the decoder."""
        around = "brackets" if self.brackets else None
        if isinstance(self.linear, nn.Linear):
            return Recipe(self.pooling, weight=self.linear.weight, bias=self.linear.bias, around=around)
        return Recipe(self.pooling, around=around)

    def loss(self, batch: Pairs | Triplets) -> Tensor:
        """Return the ranking loss of triplets (equation 3), or the pair loss of scored pairs, ().

        Differs from the paper: it trains on triplets only; scored pairs are ours, so that all strategies can train on
        STS-B.
        """
        return contrastive_loss(self, batch, self.pair_loss, self.scale)

    def compares_rows(self, batch: Batch) -> bool:
        """Tell whether the loss of such a batch compares its rows, as that of triplets does."""
        return compares_rows(batch, self.pair_loss)

    def _bracket_ids(self, role: Role | None) -> tuple[list[int], list[int]]:
        """Look up the ids of a role's brackets; a single token each, so that they never merge with the text."""
        if not self.brackets or role is None:
            return [], []
        opening, closing = ([self.backbone.tokenizer.convert_tokens_to_ids(mark)] for mark in BRACKETS[role])
        unknown = self.backbone.tokenizer.unk_token_id
        if None in opening + closing or (unknown is not None and unknown in opening + closing):
            raise UserError(
                f"`brackets` needs a tokenizer with {' and '.join(BRACKETS[role])} as single tokens, but that of "
                f"{self.backbone.name} has none; leave `brackets` false."
            )
        return opening, closing
