"""What a run that is selected by search finds: the measures of `embedlab evaluate`, of vectors that Lightning's loop gave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from embedlab.data import RoleTexts
from embedlab.errors import UserError
from embedlab.retrieval.corpus import Collection
from embedlab.retrieval.measures import measure
from embedlab.retrieval.ranking import rank

__all__ = ["measured"]


def measured(
    collection: Collection, kept: Sequence[tuple[Tensor, RoleTexts]], strategy: LightningModule
) -> dict[str, Any]:
    """Search a collection and measure what is found.

    Args:
        collection: The collection.
        kept: Vectors (B, E) of every batch, of all processes, which so find the same.
        strategy: What gave them, for messages.

    Returns:
        Each measure, how many queries and documents there are, and why a measure is undefined, which none is.

    Raises:
        UserError: If a vector is not finite.
    """
    queries, documents = (_vectors(kept, role, strategy) for role in ("query", "document"))
    found = measure(rank(collection, queries, documents), collection.judgements)
    return {
        **found.mean,
        "queries": len(collection.queries),
        "documents": len(collection.documents),
        "undefined": None,
    }


def _vectors(kept: Sequence[tuple[Tensor, RoleTexts]], role: str, strategy: LightningModule) -> Tensor:
    """Return the vectors of the distinct texts of a role in their order, (N, E)."""
    own = [(vectors, batch) for vectors, batch in kept if batch.role == role]
    first = own[0][0]
    found = first.new_empty(sum(map(len, (batch for _, batch in own))), first.shape[1])
    for vectors, batch in own:
        finite = vectors.isfinite().all(dim=1)
        if not finite.all():
            kind, text = type(strategy), batch.text[int((~finite).nonzero()[0])]
            raise UserError(
                f"`{kind.__module__}.{kind.__qualname__}` must give finite vectors, got one that is not for the {role} "
                f"{text[:60]!r} of `data.validation`; look at what it makes of that text."
            )
        found[batch.ids] = vectors
    return found
