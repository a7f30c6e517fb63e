"""Texts laid out for a decoder, without padding.

A batch of B texts is one stream of T tokens. Attention stays inside each text and positions restart with each,
so no padding is ever computed. Neighbours of equal length form a *run*: attention treats a run as one batched
product, which is why `lay_out` sorts by length.

Size letters, used throughout the package: `B` texts, `T` tokens of a batch, `D` model width, `L` layers read,
`E` embedding width, `F` feature width, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

__all__ = ["Tokens", "lay_out", "token_batches"]


@dataclass(frozen=True)
class Tokens:
    """B texts in one stream of T tokens.

    Attributes:
        ids: Token ids, (T,), int64.
        lengths: Tokens of each text, B positive integers that sum to T.
        content: True where a token holds a letter or a digit, (T,); brackets and punctuation are False.
    """

    ids: Tensor
    lengths: tuple[int, ...]
    content: Tensor

    def __len__(self) -> int:
        """Return B, the number of texts."""
        return len(self.lengths)

    @cached_property
    def offsets(self) -> Tensor:
        """Where each text begins, and T at the end, (B + 1,)."""
        sizes = torch.tensor((0, *self.lengths), device=self.ids.device)
        return sizes.cumsum(0)

    @cached_property
    def text_of(self) -> Tensor:
        """The text each token belongs to, (T,), 0 to B - 1."""
        sizes = torch.tensor(self.lengths, device=self.ids.device)
        return torch.repeat_interleave(torch.arange(len(self), device=self.ids.device), sizes)

    @cached_property
    def positions(self) -> Tensor:
        """Position of each token in its own text, (T,), from 0."""
        return torch.arange(len(self.ids), device=self.ids.device) - self.offsets[self.text_of]

    @cached_property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """Neighbouring texts of equal length, as (number of texts, length)."""
        return tuple((len(list(group)), length) for length, group in groupby(self.lengths))

    def padded(self) -> tuple[Tensor, Tensor]:
        """Lay the same texts out as padded rows, for a decoder that cannot be packed.

        Returns:
            Row and column of each token in a (B, longest) rectangle padded on the right: two tensors, (T,).
        """
        return self.text_of, self.positions


def lay_out(id_lists: Sequence[Sequence[int]], content: Tensor) -> Tokens:
    """Put texts one after the other, in the order given.

    Args:
        id_lists: Token ids of each text, B non-empty lists.
        content: For every id of the vocabulary, whether it holds a letter or a digit, (V,).

    Raises:
        ValueError: If a text has no token.
    """
    lengths = tuple(len(ids) for ids in id_lists)
    if not lengths or min(lengths) == 0:
        raise ValueError("`id_lists` must hold texts of at least one token each, got an empty one.")
    flat = torch.tensor([token for ids in id_lists for token in ids], device=content.device)
    return Tokens(ids=flat, lengths=lengths, content=content[flat])


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Cut texts into batches of at most `budget` tokens, shortest texts first.

    Sorting by token count puts equal lengths side by side. A text longer than the budget is a batch of its own.

    Args:
        lengths: Tokens of each text.
        budget: Tokens of a batch at most.

    Yields:
        Indices of the texts of one batch.

    >>> list(token_batches([5, 2, 9, 2], budget=9))
    [[1, 3, 0], [2]]
    """
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and tokens + lengths[index] > budget:
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += lengths[index]
    if batch:
        yield batch
