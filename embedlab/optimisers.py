"""AdamW over stacked parameters, with a learning rate of its own for each slice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

__all__ = ["SlicedAdamW", "sliced"]


@final
class SlicedAdamW(torch.optim.AdamW):
    """AdamW in which slices of one parameter may stand in different groups.

    Networks of many blocks are kept in one stacked tensor, so that a block has no parameter that a group could
    name. Here its slices are what is optimised: they share the parameter's memory, and before a step each gets its
    slice of the parameter's gradient. Scaling the gradient instead would change nothing, as Adam divides it out.

    Args:
        groups: As for any optimiser; what is no parameter itself must be among `slices`.
        slices: Parameter to what `sliced` returned for it.
        lr: Learning rate of groups that set none.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], slices: Mapping[nn.Parameter, list[Tensor]], lr: float
    ) -> None:
        self.slices = dict(slices)
        super().__init__(list(groups), lr=lr, fused=True)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, those of stacked parameters too."""
        super().zero_grad(set_to_none)
        for parameter in self.slices:
            parameter.grad = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; the closure computes loss and gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for parameter, parts in self.slices.items():
            if parameter.grad is not None:
                for part, gradient in zip(parts, parameter.grad, strict=True):
                    part.grad = gradient
        super().step()
        return loss


def sliced(parameter: nn.Parameter) -> list[Tensor]:
    """Return the slices of a parameter along its first axis; they share its memory."""
    return list(parameter.detach().unbind(0))
