"""Batches of what is trained on, scored or searched, shared out to the processes of a run; all of them get as many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final, Literal

import torch
from torch.utils.data import DataLoader

from embedlab.data.batches import Pairs, RoleTexts, Texts, Triplets
from embedlab.data.sampler import TrainLoader, shard
from embedlab.data.sources import Rows
from embedlab.errors import UserError

__all__ = ["collate", "scored", "searched", "shuffled"]

TEXTS: Final = 4  # of a collection, embedded at once for each pair that would be scored


def shuffled(rows: Rows, size: int, seed: int, drop_last: bool, rank: int, world: int) -> TrainLoader:
    """Shuffle training rows.

    Args:
        rows: The rows.
        size: Rows of a batch, of all processes together.
        seed: Decides the order, together with the epoch.
        drop_last: Whether an incomplete last batch is left out.
        rank: This process.
        world: Number of processes.
    """
    if min(size, len(rows)) < world:
        raise UserError(
            f"`data.batch_size` must give each of the {world} processes a row, got {size} of {len(rows)}; raise "
            "it, or lower `trainer.devices`."
        )
    if not drop_last and 0 < len(rows) % size < world:
        raise UserError(
            f"`data.drop_last` must be true where the last batch has fewer rows than there are processes, got "
            f"{len(rows) % size} for {world}; set it, or another `data.batch_size`."
        )
    apart = rows.shared if rows.kind == "triplets" else None  # there each row's texts are negatives of the others
    return TrainLoader(len(rows), collate(rows), size, seed, drop_last, rank, world, apart)


def scored(rows: Rows, name: str, size: int, rank: int, world: int) -> DataLoader[Any]:
    """Go through pairs in order.

    Args:
        rows: The pairs.
        name: Of the set, for messages.
        size: Pairs of a batch.
        rank: This process.
        world: Number of processes.
    """
    if len(rows) < world:
        raise UserError(
            f"`trainer.devices` must be at most the pairs of {name}, got {world} for {len(rows)}; lower it."
        )
    return _loader(_batches(range(len(rows)), size, rank, world), collate(rows))


def searched(queries: Sequence[str], documents: Sequence[str], size: int, rank: int, world: int) -> DataLoader[Any]:
    """Go through the texts of a collection, the longest first as `embedlab evaluate` does: documents, then queries.

    Args:
        queries: Distinct texts.
        documents: Distinct texts.
        size: Pairs of a batch; of single texts it holds four times as many.
        rank: This process.
        world: Number of processes.
    """
    texts: dict[Literal["document", "query"], Sequence[str]] = {"document": documents, "query": queries}
    batches = []
    for role, own in texts.items():
        if len(own) < world:
            what = "documents" if role == "document" else "queries"
            raise UserError(
                f"`trainer.devices` must be at most the {what} of `data.validation`, got {world} for {len(own)}; lower it."
            )
        order = sorted(range(len(own)), key=lambda i, own=own: (len(own[i]), own[i]), reverse=True)  # type: ignore[misc]
        batches += [(role, chosen) for chosen in _batches(order, TEXTS * size, rank, world)]
    return _loader(batches, lambda batch: RoleTexts([texts[batch[0]][i] for i in batch[1]], *batch))


def _batches(order: Sequence[int], size: int, rank: int, world: int) -> list[list[int]]:
    """Cut the part of this process into batches.

    As many in every process, as data-parallel modules wait for each other in each of them.
    """
    own = shard(list(order), rank, world)
    number = min(-(-len(order) // (world * size)), len(order) // world)
    bounds = [len(own) * i // number for i in range(number + 1)]
    return [own[a:b] for a, b in pairwise(bounds)]


def _loader(batches: Sequence[Any], collated: Callable[[Any], Any]) -> DataLoader[Any]:
    # Batches as a data set, as Lightning remakes samplers to predict.
    return DataLoader(batches, batch_size=None, collate_fn=collated, generator=torch.Generator())  # type: ignore[arg-type]


def collate(rows: Rows) -> Callable[[list[int]], Pairs | Triplets | Texts]:
    """Return what makes a batch of row numbers."""

    def one(role: str, chosen: list[int]) -> list[str]:
        return [rows.texts[role][i][0] for i in chosen]

    def collate(chosen: list[int]) -> Pairs | Triplets | Texts:
        if rows.kind == "texts":
            return Texts(one("text", chosen))
        if rows.kind == "triplets":
            hard = rows.texts.get("negative")
            return Triplets(one("anchor", chosen), one("positive", chosen), [hard[i] if hard else [] for i in chosen])
        score = None if rows.score is None else torch.tensor([rows.score[i] for i in chosen], dtype=torch.float32)
        meta = {name: [column[i] for i in chosen] for name, column in rows.meta.items()}
        return Pairs(one("first", chosen), one("second", chosen), score, list(chosen), meta, rows.query)

    return collate
