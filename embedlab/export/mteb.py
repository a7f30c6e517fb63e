"""A run as an encoder of MTEB (Muennighoff et al., 2022, arXiv:2210.07316): `pip install 'embedlab[mteb]'`.

import embedlab, mteb
from embedlab.export.mteb import MTEBEncoder

encoder = MTEBEncoder(embedlab.load("RUN"), "me/my-embedder")
mteb.evaluate(encoder, mteb.get_task("STSBenchmark"))

MTEB's STS tasks do not say which side searches, so that a run with brackets is measured there without them. What its own test
measured is had by saying so before, which makes it another measurement than that of MTEB's tables:

    task = mteb.get_task("STSBenchmark")
    task.input1_prompt_type, task.input2_prompt_type = PromptType.query, PromptType.document  # of mteb.types
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

import numpy as np
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from embedlab.errors import UserError
from embedlab.strategies.base import Role
from embedlab.use.model import Model, Vectors

__all__ = ["MTEBEncoder"]

ROLES: dict[PromptType | None, Role | None] = {None: None, PromptType.query: "query", PromptType.document: "document"}


@final
class MTEBEncoder:
    """What `mteb.evaluate` takes.

    Args:
        model: What `embedlab.load` returns, of a strategy that embeds.
        name: What it is called in MTEB's tables, OWNER/NAME.
        batch_size: Texts handed over at a time; None is the model's own.
    """

    def __init__(self, model: Model, name: str = "embedlab/run", batch_size: int | None = None) -> None:
        if not isinstance(model, Model):
            raise UserError(f"`model` must be what `embedlab.load` returns, got {type(model).__name__}; load it first.")
        if name.count("/") != 1:
            raise UserError(f"`name` must be OWNER/NAME, got {name!r}.")
        if not model.embeds:
            raise UserError(f"`model` must embed, but {model.name} scores pairs; MTEB takes no such encoder.")
        self.model, self.name = model, name
        self.options: dict[str, Any] = {} if batch_size is None else {"batch_size": batch_size}

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, prompt_type: PromptType | None = None, **_: Any
    ) -> NDArray[np.float32]:
        """Embed the texts of all batches, (B, E), as queries or documents where the task tells them apart.

        STS does not, unless its task is told to: see above.
        An empty text, which a decoder cannot read, is read as a space.
        """
        texts = [text or " " for batch in inputs for text in batch["text"]]
        vectors = self.model.encode(texts, role=ROLES[prompt_type], **self.options)
        assert isinstance(vectors, np.ndarray)
        return vectors

    def similarity(self, embeddings1: Vectors, embeddings2: Vectors) -> Tensor:
        """Return the cosine of every vector with every other, (N, M)."""
        return self.model.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Vectors, embeddings2: Vectors) -> Tensor:
        """Return the cosine of each vector with that in the same place, (N,)."""
        first, second = (Tensor(np.asarray(own)) for own in (embeddings1, embeddings2))
        return functional.cosine_similarity(first, second, dim=-1)

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """What MTEB says of it; the revision is a hash of all that decides its numbers."""
        strategy, backbone = self.model.strategy, self.model.strategy.backbone
        number = sum(p.numel() for n, p in strategy.named_parameters() if not n.startswith("backbone."))
        return ModelMeta(
            loader=None,
            name=self.name,
            revision=self.model.identity[:12] or "unknown",
            release_date=None,
            languages=None,
            n_parameters=number + (0 if backbone is None else backbone.num_parameters),
            memory_usage_mb=None,
            max_tokens=None if backbone is None else backbone.window,
            embed_dim=int(self.model.encode("a").shape[-1]),
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name=ScoringFunction.COSINE,
            use_instructions=False,
            training_datasets=None,
        )
