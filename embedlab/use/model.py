"""A strategy ready for use: texts in, numpy out.

Names of methods and arguments are those of sentence-transformers, so that one can take the other's place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Final, TypeVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from embedlab.errors import UserError
from embedlab.retrieval.search import cosines
from embedlab.strategies.base import Embedder, EmbeddingStrategy, Role
from embedlab.use.given import (
    Vectors,
    batches,
    check_at_least_1,
    check_not_empty,
    check_truncation,
    sides_of,
    texts_of,
    vectors_of,
)

__all__ = ["Model", "Vectors"]

Item = TypeVar("Item")
TEXTS: Final = 1024  # handed to the decoder at a time, which makes passes of about equal size of them
PAIRS: Final = 256
PART: Final = 4096  # pairs whose vectors are held at a time


@final
class Model:
    """A strategy ready for use; `embedlab.load` makes one.

    Results do not depend on `batch_size`, on the order of texts or on what else is asked for, but for rounding
    (which is coarse in bfloat16: some thousandths of a score; `dtype="float32"` in `load` makes it vanish).

    Args:
        strategy: Loaded, on its device.
        identity: Hash of all that decides its numbers.
        autocast: What the trainer of its run computed in beside the decoder; None is nothing else.
    """

    def __init__(self, strategy: EmbeddingStrategy, identity: str = "", autocast: torch.dtype | None = None) -> None:
        self.strategy, self.identity, self.autocast = strategy.eval(), identity, autocast

    @property
    def name(self) -> str:
        """The class of its strategy."""
        return type(self.strategy).__qualname__

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.strategy.device

    @property
    def notes(self) -> list[str]:
        """What must be known of it: departures from the paper, how texts are read."""
        return self.strategy.notes

    @property
    def embeds(self) -> bool:
        """Whether it gives a vector for a text; if not, it scores pairs only."""
        return isinstance(self.strategy, Embedder)

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        role: Role | None = None,
        batch_size: int = TEXTS,
        show_progress_bar: bool = False,
        normalize_embeddings: bool = False,
        convert_to_tensor: bool = False,
        truncate_dim: int | None = None,
    ) -> Vectors:
        """Embed texts.

        Args:
            texts: B texts, or one.
            role: Whether they are queries or documents; None where both are alike.
            batch_size: Texts handed over at a time; how many tokens a pass takes is `backbone.tokens_per_pass`.
            show_progress_bar: Whether to show how far it is, on stderr.
            normalize_embeddings: Whether every vector is scaled to length 1.
            convert_to_tensor: Whether to return a tensor on the model's device instead of an array.
            truncate_dim: Keep so many of the first coordinates, before scaling.

        Returns:
            One vector per text in their order, (B, E) float32, or (E,) for one text.

        Raises:
            UserError: If the strategy has no vectors, or a text is none.
        """
        several = [texts] if isinstance(texts, str) else texts_of(texts, "texts")
        vectors = self._vectors(several, role, batch_size, show_progress_bar, normalize_embeddings, truncate_dim)
        vectors = vectors[0] if isinstance(texts, str) else vectors
        return vectors if convert_to_tensor else vectors.cpu().numpy()

    @torch.no_grad()
    def _vectors(
        self,
        texts: list[str],
        role: Role | None,
        batch_size: int,
        shown: bool,
        normalized: bool,
        coordinates: int | None,
    ) -> Tensor:
        strategy = self.strategy
        if not isinstance(strategy, Embedder):
            raise UserError(
                f"`encode` needs a strategy that embeds, but {self.name} scores pairs and has no vectors; use `score` or `rank`."
            )
        if role not in (None, "query", "document"):
            raise UserError(f"`role` must be query, document or None, got {role!r}; give one of these.")
        if coordinates is not None:
            check_truncation(self.encode, coordinates, "truncate_dim")
        check_not_empty(strategy, texts, "texts")
        if not texts:
            return strategy.embed(["a"], role)[:0, :coordinates]
        found: Tensor | None = None
        for chosen in batches([(len(text), text, 0) for text in texts], batch_size, "Embedding", shown):
            with self._precision():
                vectors = strategy.embed([texts[i] for i in chosen], role)
            vectors = vectors[:, :coordinates]
            found = vectors.new_empty(len(texts), vectors.shape[1]) if found is None else found
            found[chosen] = functional.normalize(vectors, dim=-1) if normalized else vectors
        assert found is not None
        return found

    def encode_query(self, texts: str | Sequence[str], **options: Any) -> Any:
        """Embed queries; as `encode`."""
        return self.encode(texts, role="query", **options)

    def encode_document(self, texts: str | Sequence[str], **options: Any) -> Any:
        """Embed documents; as `encode`."""
        return self.encode(texts, role="document", **options)

    @staticmethod
    def similarity(first: Vectors, second: Vectors) -> Tensor:
        """Return the cosine of every vector of the first, (N, E), with every one of the second, (M, E), as (N, M)."""
        return cosines(*vectors_of(first, second))

    @torch.no_grad()
    def score(
        self, pairs: Sequence[tuple[str, str]], *, batch_size: int = PAIRS, show_progress_bar: bool = False
    ) -> NDArray[np.float32]:
        """Score pairs of texts, higher for more alike.

        Args:
            pairs: N pairs, the query first where the strategy tells the sides apart.
            batch_size: Pairs handed over at a time.
            show_progress_bar: Whether to show how far it is, on stderr.

        Returns:
            Their scores, (N,).
        """
        first, second = sides_of(pairs)
        for side in (first, second):
            check_not_empty(self.strategy, side, "pairs")
        # Equal pairs are scored once, or rounding might tell them apart.
        distinct, place = _distinct(zip(first, second, strict=True))
        found = np.empty(len(distinct), np.float32)
        first, second = [pair[0] for pair in distinct], [pair[1] for pair in distinct]
        # Pairs of one document side by side, as a cross-encoder reads it once for all its queries.
        keys = [(len(document), document, len(query)) for query, document in distinct]
        check_at_least_1(batch_size, "batch_size")
        one = self.embeds and len(distinct) <= PART
        for chosen in batches(keys, PART if self.embeds else batch_size, "Scoring", show_progress_bar and not one):
            sides = [first[i] for i in chosen], [second[i] for i in chosen]
            if isinstance(self.strategy, Embedder):
                shown = show_progress_bar and one
                embed = partial(
                    self._vectors, batch_size=2 * batch_size, shown=shown, normalized=True, coordinates=None
                )
                scores = _cosines(embed, *sides, self.strategy.symmetric)
            else:
                with self._precision():
                    scores = self.strategy.score(*sides).float().cpu()
            found[chosen] = scores.numpy()
        return found[place]

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_k: int | None = None,
        return_documents: bool = False,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
    ) -> list[dict[str, Any]]:
        """Order documents by their score with a query, best first; equal scores in the order given.

        Args:
            query: The query.
            documents: The documents.
            top_k: How many to return; None is all.
            return_documents: Whether their texts are returned too.
            batch_size: Texts or pairs handed over at a time.
            show_progress_bar: Whether to show how far it is, on stderr.

        Returns:
            For each a mapping with `corpus_id` (its place in `documents`), `score`, and `text` if asked for.
        """
        if not isinstance(query, str):
            raise UserError(f"`query` must be one text, got {type(query).__name__}; rank for one query at a time.")
        documents = texts_of(documents, "documents")
        if top_k is not None:
            check_at_least_1(top_k, "top_k")
        for argument, own in (("query", [query]), ("documents", documents)):
            check_not_empty(self.strategy, own, argument)
        options: dict[str, Any] = {"show_progress_bar": show_progress_bar}
        if batch_size is not None:
            options["batch_size"] = batch_size
        if not documents:
            return []
        if self.embeds:
            vectors = self.encode_document(documents, convert_to_tensor=True, **options)
            scores = self.similarity(self.encode_query(query, convert_to_tensor=True), vectors)[0].cpu().numpy()
        else:
            scores = self.score([(query, document) for document in documents], **options)
        best = np.argsort(-scores, kind="stable")[:top_k]
        shown = [{"text": documents[i]} if return_documents else {} for i in best]
        return [{"corpus_id": int(i), "score": float(scores[i]), **own} for i, own in zip(best, shown, strict=True)]

    def _precision(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, self.autocast)


def _distinct(items: Iterable[Item]) -> tuple[list[Item], list[int]]:
    """Return the distinct ones of N things in the order they come, and the place of each of the N among them."""
    known: dict[Item, int] = {}
    places = [known.setdefault(item, len(known)) for item in items]
    return list(known), places


def _cosines(embed: Callable[..., Tensor], first: list[str], second: list[str], symmetric: bool) -> Tensor:
    """Score N pairs by vectors of length 1, (N,); a text is embedded once a side, however many of them have it."""
    sides: list[tuple[list[str], Role | None]] = [(first, "query"), (second, "document")]
    rows = []
    for texts, role in [([*first, *second], None)] if symmetric else sides:
        known, place = _distinct(texts)
        rows.append(embed(known, role)[place])
    queries, documents = torch.cat(rows).chunk(2)
    return (queries * documents).sum(-1).cpu()
