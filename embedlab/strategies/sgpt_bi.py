"""SGPT bi-encoder: train the biases of a decoder, average its final hidden states with weights that grow with position.

Muennighoff, 2022. SGPT: GPT Sentence Embeddings for Semantic Search. arXiv:2202.08904, section 4.

    v = sum_i w_i h_i,   w_i = i / sum_j j                                              (equation 2)
    J = -1/B sum_i log  exp(20 cos(q_i, d_i)) / sum_j exp(20 cos(q_i, d_j))             (equation 3)

For search, queries and documents are marked by brackets, [query] and {document}, as token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import final

from torch import Tensor

from embedlab import losses, pooling
from embedlab.backbone import Backbone
from embedlab.backbone.tuning import BitFit, Tuning
from embedlab.data import Pairs, Triplets
from embedlab.errors import UserError
from embedlab.losses import PairLoss
from embedlab.pooling import Pooling
from embedlab.strategies.base import Embedder, Recipe, Role, Trainable, Training
from embedlab.strategies.contrastive import contrastive_loss
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
        pair_loss: Loss on scored pairs, from cosines and gold scores.
        scale: Inverse temperature of the ranking loss on triplets.
        training: Settings of the optimiser. A learning rate of None is the published one where the decoder has biases,
            and a higher one where zero biases are added.
    """

    paper = published("section 4.1", pooling=pooling.weighted_mean, tuning="BitFit") | published(
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
        "of equal texts in a batch none is a negative of the other; the authors keep them out of a batch",
    )

    def __init__(
        self,
        backbone: Backbone,
        pooling: Pooling = pooling.weighted_mean,
        brackets: bool = False,
        tuning: Tuning | None = None,
        pair_loss: PairLoss = losses.cosent,
        scale: float = SCALE,
        training: Training = TRAINING,
    ) -> None:
        super().__init__()
        if not 0 < scale < float("inf"):
            raise UserError(f"`scale` must be positive and finite, got {scale}.")
        tuning = tuning or BitFit()
        if training.learning_rate is None and not isinstance(tuning, BitFit):
            raise UserError(
                f"`training.learning_rate` must be given where `tuning` is {type(tuning).__name__}, got none; only that "
                "of BitFit is published."
            )
        self.compare_with_paper(locals())
        self.backbone: Backbone = backbone
        self.pooling, self.brackets, self.tuning = pooling, brackets, tuning
        self.symmetric = not brackets
        self.pair_loss, self.scale, self.plan, self.decided = pair_loss, scale, training, False

    def configure_model(self) -> None:
        """Load the decoder, choose its trainable parameters and the learning rate."""
        self.backbone.load(self.tuning)
        if not self.decided:
            added = isinstance(self.tuning, BitFit) and self.tuning.added > 0
            rate = self.plan.learning_rate or (ADDED_RATE if added else RATE)
            self.plan, self.decided = replace(self.plan, learning_rate=rate), True
            self.compare_with_paper({"training": self.plan}, published("the NLI models", training__learning_rate=RATE))

    def embed(self, texts: Sequence[str], role: Role | None = None) -> Tensor:
        """Pool the final hidden states of texts, in the brackets of their role, (B, D)."""
        prefix, suffix = self._bracket_ids(role)
        return self.backbone.pool(texts, self.pooling, prefix=prefix, suffix=suffix)[:, 0]

    def recipe(self) -> Recipe:
        """Return its pooling and brackets; what was tuned belongs to the decoder."""
        return Recipe(self.pooling, around="brackets" if self.brackets else None)

    def loss(self, batch: Pairs | Triplets) -> Tensor:
        """Return the ranking loss of triplets (equation 3), or the pair loss of scored pairs, ().

        Differs from the paper: it trains on triplets only; scored pairs are ours, so that all strategies can train on
        STS-B.
        """
        return contrastive_loss(self, batch, self.pair_loss, self.scale)

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
