"""The untrained baseline: pooled hidden states of a frozen decoder.

Reimers and Gurevych, 2019. Sentence-BERT. arXiv:1908.10084, section 4.1, where averaging the states of a
pretrained model is the baseline. Optional centring and scaling by training texts undo the common direction of a
language model's states (Ethayarajh, 2019, arXiv:1909.00512, section 4.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, final

import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from embedlab import pooling
from embedlab.backbone import FINAL, Backbone, Layer
from embedlab.backbone.features import Features, FinalPunctuation
from embedlab.pooling import Pooling
from embedlab.strategies.base import Embedder, Recipe, Role
from embedlab.strategies.published import published
from embedlab.strategies.whitening import principal_map, too_few

__all__ = ["PooledDecoder"]


@final
class PooledDecoder(Embedder):
    """Pooled states of a frozen decoder.

    Args:
        backbone: The decoder.
        pooling: From token states to one vector.
        layer: Hidden state to pool: 0 is the embedding output, l the output of block l, "final" that of the final norm.
        standardize: `none`; `center` subtracts the mean of the training texts' vectors; `zscore` also divides by their
            standard deviation, per coordinate; `whiten` maps them to uncorrelated coordinates of variance 1 (Su et al.,
            2021, arXiv:2103.15316, section 3.1), their covariance shrunk as Ledoit and Wolf (2004) do.
        final_punctuation: Whether a final . ! or ? stays, is taken off, or is added where missing.
    """

    paper = published("section 4.1", pooling=pooling.mean, layer=FINAL, standardize="none", final_punctuation="keep")
    symmetric = True
    mean: Tensor
    scale: Tensor
    whitening: Tensor

    def __init__(
        self,
        backbone: Backbone,
        pooling: Pooling = pooling.mean,
        layer: Layer = FINAL,
        standardize: Literal["none", "center", "zscore", "whiten"] = "none",
        final_punctuation: FinalPunctuation = "keep",
    ) -> None:
        super().__init__()
        self.compare_with_paper(locals())
        self.built = False
        self.backbone: Backbone = backbone
        self.features: Features = Features(
            backbone, pooling, final_punctuation, layers=[layer], pool_begin=True, kept_as=torch.float32
        )
        self.standardize, self.takes_statistics = standardize, standardize != "none"

    def configure_model(self) -> None:
        """Load the decoder; allocate mean and scale, (D,) each, and a map, (D, D), that whitens."""
        self.backbone.load()
        if not self.built:
            self.register_buffer("mean", torch.zeros(self.backbone.width))
            self.register_buffer("scale", torch.ones(self.backbone.width))
            if self.standardize == "whiten":
                self.register_buffer("whitening", torch.eye(self.backbone.width))
            self.built = True

    def prepare(self, texts: Sequence[str]) -> None:
        """Compute mean, and standard deviation or covariance, of the training texts' vectors."""
        if self.standardize == "none":
            return
        self.precompute(texts, self.progress)
        vectors = self._pooled(texts).double()
        self.mean.copy_(vectors.mean(0))
        if self.standardize == "zscore":
            self.scale.copy_(vectors.std(0, correction=min(1, len(vectors) - 1)).clamp_min(1e-6))
        if self.standardize == "whiten":
            self.whitening.copy_(principal_map(torch.from_numpy(ledoit_wolf(vectors.cpu().numpy())[0])))

    def embed(self, texts: Sequence[str], role: Role | None = None) -> Tensor:
        """Pool, center and scale or whiten, (B, D), the same in either role."""
        centred = self._pooled(texts) - self.mean
        if self.standardize != "whiten":
            return centred / self.scale
        with torch.autocast(self.device.type, enabled=False):  # whatever the trainer's precision
            return centred @ self.whitening

    def doubts(self, texts: int) -> Sequence[str]:
        """Say so where texts of less number than coordinates are whitened by."""
        shrunk = "so that it is more Ledoit and Wolf's shrinkage than what the texts say"
        whitened = self.standardize == "whiten"
        return too_few(texts, self.backbone.width, "whitening is computed", shrunk) if whitened else ()

    def recipe(self) -> Recipe | None:
        """Return pooling and layer, centring and scaling as a matrix and a bias; None where texts are changed first."""
        if self.features.final_punctuation != "keep":
            return None
        own, layer = self.features.pooling, self.features.layers[0]
        if self.standardize == "none":
            return Recipe(own, layer)
        weight = self.whitening.T if self.standardize == "whiten" else torch.diag(1 / self.scale)
        return Recipe(own, layer, weight, -weight @ self.mean)

    def _pooled(self, texts: Sequence[str]) -> Tensor:
        return self.features.get(texts)[:, 0].to(self.device)
