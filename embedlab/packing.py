"""Packing: B texts as one sequence of T tokens, without padding.

Attention stays inside each text and positions restart with each, so that no linear layer computes padding.
Neighbours of similar length form a *group*, which attention computes as one batched product over a padded
rectangle; texts are therefore sorted by length before they are packed.

A text may continue an earlier one, its *parent*: its tokens attend to the parent's as if these came before its own, and
its positions continue the parent's. So a common beginning of several texts is computed once.

Size letters, used throughout the package: `B` texts, `T` tokens of a batch, `D` model width, `L` layers read,
`E` embedding width, `F` feature width, `V` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

__all__ = ["Group", "PackedBatch", "distinct_texts", "even_batches", "pack", "token_batches"]

# Texts join a group while its rectangle holds at most this many places per token. Attention over short texts is bound
# by the number of calls, not by their size: docs/tried.md has the times of 1.0 (equal lengths only) to 4.0.
SLACK = 2.0

# Fewest columns of a rectangle, as softmax over fewer is not vectorised on the processor.
SHORTEST = 16


@dataclass(frozen=True)
class Group:
    """n neighbouring texts of m tokens in all, seen as a rectangle of n rows and `length` columns.

    Attributes:
        count: n.
        length: Tokens of the longest, or SHORTEST.
        size: m.
        tokens: For each place the token that stands there, (n * length,), from 0 at the group's begin; places past a
            text's end repeat its last token. None where all texts are equally long, so that places are tokens.
        places: For each token its place, (m,), or None as before.
        before: Indices, in the whole batch, of the P parent tokens of each text, (n, P); None where P is 0.
    """

    count: int
    length: int
    size: int
    tokens: Tensor | None
    places: Tensor | None
    before: Tensor | None = None


@dataclass(frozen=True)
class PackedBatch:
    """B texts as one sequence of T tokens.

    Attributes:
        ids: Token ids, (T,), int64.
        lengths: Tokens of each text, B positive integers that sum to T.
        content: True where a token holds a letter or a digit, (T,); brackets and punctuation are False.
        parents: For each text the index of the earlier text it continues, or -1; () where none does.
    """

    ids: Tensor
    lengths: tuple[int, ...]
    content: Tensor
    parents: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Return B, the number of texts."""
        return len(self.lengths)

    @cached_property
    def offsets(self) -> Tensor:
        """Where each text begins, and T at the end, (B + 1,)."""
        sizes = torch.tensor((0, *self.lengths), device=self.ids.device)
        return sizes.cumsum(0)

    @cached_property
    def bounds(self) -> Tensor:
        """`offsets` as kernels take them, (B + 1,), int32."""
        return self.offsets.int()

    @cached_property
    def text_of(self) -> Tensor:
        """The text each token belongs to, (T,), 0 to B - 1."""
        sizes = torch.tensor(self.lengths, device=self.ids.device)
        return torch.repeat_interleave(torch.arange(len(self), device=self.ids.device), sizes)

    @cached_property
    def before(self) -> tuple[tuple[int, ...], ...]:
        """For each text the indices of the earlier texts it continues, first to last."""
        before: list[tuple[int, ...]] = []
        for parent in self.parents or (-1,) * len(self):
            before.append(() if parent < 0 else (*before[parent], parent))
        return tuple(before)

    @cached_property
    def positions(self) -> Tensor:
        """Position of each token in its own text, (T,), from 0, or from the end of its parent."""
        starts = self.offsets[:-1]
        if self.parents:
            starts = starts - torch.tensor([self._length(*own) for own in self.before], device=self.ids.device)
        return torch.arange(len(self.ids), device=self.ids.device) - starts[self.text_of]

    def without_first(self, number: int) -> tuple[PackedBatch, Tensor]:
        """Return the texts without the first `number` tokens of each, and which tokens are left, (T,)."""
        left = self.positions >= number
        return PackedBatch(self.ids[left], tuple(own - number for own in self.lengths), self.content[left]), left

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Neighbouring texts of similar length, each group one rectangle for attention."""
        spans: list[tuple[int, int]] = []  # first text of a group, and the text after its last
        first = longest = total = 0
        for number, length in enumerate(self.lengths):
            grown = max(longest, length)
            stands_apart = self._length(*self.before[number]) != self._length(*self.before[first])
            if number > first and (stands_apart or grown * (number + 1 - first) > SLACK * (total + length)):
                spans.append((first, number))
                first, grown, total = number, length, 0
            longest, total = grown, total + length
        spans.append((first, len(self.lengths)))
        return tuple(self._group(*span) for span in spans)

    def _group(self, first: int, end: int) -> Group:
        own, device = self.lengths[first:end], self.ids.device
        count, longest = end - first, max(*own, SHORTEST)
        before = None
        if self.before[first]:
            bounds = list(accumulate(self.lengths, initial=0))
            earlier = [[t for p in texts for t in range(bounds[p], bounds[p + 1])] for texts in self.before[first:end]]
            before = torch.tensor(earlier, device=device)
        if count * longest == sum(own):
            return Group(count, longest, sum(own), None, None, before)
        lengths = torch.tensor(own, device=device)[:, None]
        column = torch.arange(longest, device=device)[None]
        starts = lengths.cumsum(0) - lengths
        tokens = (starts + column.minimum(lengths - 1)).flatten()
        return Group(count, longest, sum(own), tokens, (column < lengths).flatten().nonzero()[:, 0], before)

    def _length(self, *texts: int) -> int:
        """Return the number of tokens of some texts together."""
        return sum(self.lengths[text] for text in texts)


def pack(id_lists: Sequence[Sequence[int]], content: Tensor, parents: Sequence[int] = ()) -> PackedBatch:
    """Pack texts in the order given.

    Args:
        id_lists: Token ids of each text, B non-empty lists.
        content: For every id of the vocabulary, whether it holds a letter or a digit, (V,).
        parents: For each text the index of the earlier one it continues, or -1; empty where none does.

    Raises:
        ValueError: If a text has no token.
    """
    lengths = tuple(len(ids) for ids in id_lists)
    if not lengths or min(lengths) == 0:
        raise ValueError("`id_lists` must hold texts of at least one token each, got an empty one.")
    flat = torch.tensor([token for ids in id_lists for token in ids], device=content.device)
    return PackedBatch(flat, lengths, content[flat], tuple(parents))


def distinct_texts(id_lists: Sequence[Sequence[int]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """Return the distinct texts, and for each text which of these it is.

    >>> distinct_texts([[1, 2], [3], [1, 2]])
    ([(1, 2), (3,)], [0, 1, 0])
    """
    numbers: dict[tuple[int, ...], int] = {}
    back = [numbers.setdefault(tuple(ids), len(numbers)) for ids in id_lists]
    return list(numbers), back


def even_batches(lengths: Sequence[int], number: int) -> list[list[int]]:
    """Deal texts out to batches of at most `number` texts, which are alike in size.

    Dealt by length, every batch has its share of long texts, so that none takes much more memory than another.

    Args:
        lengths: Tokens of each text.
        number: Most texts of a batch.

    Returns:
        Indices of the texts of each batch, shortest texts first.

    >>> even_batches([5, 2, 9, 3, 4], number=2)
    [[1, 0], [3, 2], [4]]
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    batches = -(-len(order) // number)
    return [order[first::batches] for first in range(batches)]


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Cut texts into batches of at most `budget` tokens, shortest texts first.

    Sorting by token count puts equal lengths side by side. Batches are about equally large, as a small last one would
    cost nearly as much as a full one. A text longer than the budget is a batch of its own.

    Args:
        lengths: Tokens of each text.
        budget: Most tokens of a batch.

    Yields:
        Indices of the texts of one batch.

    >>> list(token_batches([5, 2, 9, 2], budget=9))
    [[1, 3, 0], [2]]
    >>> list(token_batches([2] * 6, budget=10))
    [[0, 1, 2], [3, 4, 5]]
    """
    left = sum(lengths)
    batch: list[int] = []
    tokens = 0
    share = float(left)
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (tokens >= share or tokens + lengths[index] > budget):
            yield batch
            batch, tokens = [], 0
        if not batch:
            share = left / math.ceil(left / budget)
        batch.append(index)
        tokens += lengths[index]
        left -= lengths[index]
    if batch:
        yield batch
