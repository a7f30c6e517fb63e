"""Gather tensors and lists over the processes of a run. With one process, every function returns its argument."""

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

    If every process computes the same loss over the joined rows, averaging the gradients, as data-parallel training
    does, gives the gradient that a single process would get on the joined batch.

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
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    """Gather in the forward pass; in the backward pass sum the gradients of a row over all processes."""

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
