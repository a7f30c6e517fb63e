"""What the processes of one run tell each other. In a run of one process everything here returns what it was given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["gather", "gather_lists", "share_sum"]

Item = TypeVar("Item")


def gather(values: Tensor) -> Tensor:
    """Join the rows of all processes, first process first; gradients flow back to the process a row came from.

    A loss over the joined rows, computed alike in every process, gets the gradient of one process with the joined
    batch once the processes' gradients are averaged, as data-parallel training does.

    Args:
        values: Rows of this process, (b, ...); their number may differ between processes.

    Returns:
        Rows of all processes, (B, ...).
    """
    if _count() == 1:
        return values
    joined: Tensor = _Gather.apply(values)  # type: ignore[no-untyped-call]
    return joined


def gather_lists(items: Sequence[Item]) -> list[Item]:
    """Join the lists of all processes, first process first."""
    if _count() == 1:
        return list(items)
    parts: list[Any] = [None] * _count()
    dist.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def share_sum(number: int) -> int:
    """Return the sum of a number over all processes."""
    return sum(gather_lists([number]))


def _count() -> int:
    """Return how many processes take part."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    """Gather in the forward pass; in the backward pass add up what every process asks of a row."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # type: ignore[override]  # torch types it as variadic
        sizes = gather_lists([len(values)])
        longest = max(sizes)
        padded = torch.cat([values, values.new_zeros(longest - len(values), *values.shape[1:])])
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        start = sum(sizes[: dist.get_rank()])
        ctx.own = slice(start, start + len(values))
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.own]
