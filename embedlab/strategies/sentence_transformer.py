"""A trained model of sentence-transformers as it is, the row of reference; nothing trains.

Reimers and Gurevych, 2019. Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks. arXiv:1908.10084, section 3.
What makes a vector (encoder, pooling, projections, prompts, the longest text) is what the model's folder says, done by the
library itself. Models differ in data and size, so the row tells what is in reach, not which method is better.

    score = cos(u, v)
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import Literal, final

from torch import Tensor

from embedlab.errors import UserError
from embedlab.strategies.base import Embedder, Role
from embedlab.strategies.borrowed import LIBRARY, SentenceModel

__all__ = ["SentenceTransformerReference"]


@final
class SentenceTransformerReference(Embedder):
    """Vectors of a model of sentence-transformers, by its `encode_query`, `encode_document` or `encode`.

    Args:
        model: A folder that sentence-transformers saved, or a hub id.
        revision: Commit of a hub id.
        prompts: What is put before a text, by role (`query`, `document`); None is what the model itself says.
        dtype: What it computes in.
        batch_size: Texts of a pass.
    """

    decides_no_score = ("batch_size", "dtype", "model", "revision")  # which model it is, its hash tells
    borrowed: SentenceModel

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        prompts: dict[str, str] | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        batch_size: int = 64,
    ) -> None:
        super().__init__()
        if unknown := sorted(set(prompts or {}) - {"query", "document"}):
            raise UserError(f"`prompts` must be for query and document, got {unknown[0]!r}; rename it.")
        if batch_size < 1:
            raise UserError(f"`batch_size` must be at least 1, got {batch_size}; leave it out for the default.")
        self.borrowed, self.batch_size = SentenceModel(model, revision, prompts, dtype), batch_size

    def configure_model(self) -> None:
        """Load the model, frozen."""
        self.borrowed.on(self.device)

    def embed(self, texts: Sequence[str], role: Role | None = None) -> Tensor:
        """Return the model's own vectors, (B, E)."""
        model = self.borrowed.on(self.device)
        encode = {"query": model.encode_query, "document": model.encode_document}.get(role or "", model.encode)
        vectors = encode(list(texts), batch_size=self.batch_size, convert_to_tensor=True, show_progress_bar=False)
        own: Tensor = vectors.clone()  # out of the library's inference mode
        return own

    def remarks(self) -> list[str]:
        """Tell which model it was, as a checkpoint holds nothing of it."""
        own, model = self.borrowed, self.borrowed.on(self.device)
        limit = model.get_max_seq_length()
        cut = f", texts cut to {limit} tokens" if limit is not None else ""
        told = [f"{own.name} by {LIBRARY} {metadata.version(LIBRARY)} in {own.dtype}{cut}, hash {own.sha256[:12]}"]
        if model.similarity_fn_name not in (None, "cosine"):
            told.append(f"scored by the cosine, where the model itself says {model.similarity_fn_name}")
        return told
