"""Training batches in an order that a killed run takes up again at the very next batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, final

import torch
from torch.utils.data import DataLoader, Dataset

from embedlab.data.apart import batches_apart

__all__ = ["Indices", "TrainLoader", "shard"]

Batch = TypeVar("Batch")


def shard(indices: list[int], rank: int, world: int) -> list[int]:
    """Return the part of one process: every world-th, from its rank on."""
    return indices[rank::world]


@final
class Indices(Dataset[int]):
    """Row numbers 0 to size - 1; rows themselves stay where they are until a batch is collated."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.size

    def __getitem__(self, index: int) -> int:
        """Return the row number."""
        return index


@final
class _Epochs:
    """Batches of row numbers; their order is a function of rows, seed and epoch alone."""

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        drop_last: bool,
        rank: int,
        world: int,
        apart: Sequence[Sequence[int]] | None,
    ) -> None:
        self.size, self.batch_size, self.seed, self.apart = size, batch_size, seed, apart
        self.rank, self.world = rank, world
        self.drop_last = drop_last and size >= batch_size
        self.epoch = self.skip = 0
        self.sampler = self  # Lightning tells the epoch to a batch sampler's `sampler`, never to itself

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // self.batch_size if self.drop_last else -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        skip, self.skip = self.skip, 0
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.size, generator=generator).tolist()
        starts = range(0, len(self) * self.batch_size, self.batch_size)
        if self.apart is None:
            batches = [order[start : start + self.batch_size] for start in starts]
        else:
            sizes = [min(self.batch_size, self.size - start) for start in starts]
            batches = batches_apart(order, self.apart, sizes)
        for batch in batches[skip:]:
            yield shard(batch, self.rank, self.world)


@final
class TrainLoader(DataLoader[Any]):
    """A loader whose position is part of the checkpoint.

    Args:
        size: Number of rows.
        collate: From row numbers to a batch.
        batch_size: Rows of a batch, of all processes together, so that their number changes nothing but the time.
        seed: Decides the order, together with the epoch.
        drop_last: Whether an incomplete last batch is left out, unless it is the only one.
        rank: This process.
        world: Number of processes; each sees its own rows.
        apart: For every row, numbers of texts; rows with the same number stay out of one batch where they can. None lets
            them meet.
    """

    def __init__(
        self,
        size: int,
        collate: Callable[[list[int]], Any],
        batch_size: int,
        seed: int,
        drop_last: bool = True,
        rank: int = 0,
        world: int = 1,
        apart: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.epochs = _Epochs(size, batch_size, seed, drop_last, rank, world, apart)
        self.position = 0
        # A generator of its own: otherwise each pass would draw from the global one, and a resumed run differ.
        own = torch.Generator().manual_seed(0)
        super().__init__(Indices(size), batch_sampler=self.epochs, collate_fn=collate, generator=own)  # type: ignore[arg-type]

    @property
    def fewest(self) -> int:
        """Rows of the smallest batch, of all processes together."""
        rest = self.epochs.size % self.epochs.batch_size
        return rest if rest and not self.epochs.drop_last else self.epochs.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch."""
        self.epochs.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch names a private class
        """Yield the batches of this epoch that were not seen yet."""
        begun = self.epochs.skip
        for number, batch in enumerate(super().__iter__(), begun + 1):
            self.position = number
            yield batch
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        """Return how many batches of the epoch were handed out."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after that many batches."""
        self.epochs.skip = state["position"] % max(1, len(self.epochs))
