"""Hidden states of a decoder, handed out by hooks while it runs.

State 0 is the embedding output, state l the residual stream after block l, before the final norm. The output of
the final norm is a separate state, `FINAL`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

from torch import Tensor, nn

from embedlab.errors import UserError

__all__ = ["FINAL", "Layer", "Stop", "watch_states"]

FINAL: Final = "final"
Layer = int | Literal["final"]


class Stop(Exception):  # noqa: N818  # no error: the blocks above are not needed
    """Raised inside the decoder's forward to end it after the last state wanted."""


@contextmanager
def watch_states(
    blocks: nn.ModuleList, layers: Sequence[Layer], see: Callable[[Layer, Tensor], None]
) -> Iterator[None]:
    """Call a function with the hidden states of some layers while the decoder runs; stop it after the last of them.

    Args:
        blocks: The decoder's blocks, first to last.
        layers: Layers whose states are wanted; FINAL is no block's output and is left to the caller.
        see: Called with a layer and its states, in the shape the block returns.

    Raises:
        UserError: If the decoder has no such layer.
    """
    numbers = sorted(layer for layer in layers if layer != FINAL)
    stop = numbers[-1] if numbers and FINAL not in layers else None
    handles = []

    def seen(layer: int, states: Any) -> None:
        see(layer, states[0] if isinstance(states, tuple) else states)
        if layer == stop:
            raise Stop

    def before(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen(0, arguments[0] if arguments else named["hidden_states"])

    def after(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, arguments, output: seen(layer, output)

    try:
        for number in numbers:
            if not 0 <= number <= len(blocks):
                raise UserError(
                    f"`layer` must be 0 to {len(blocks)} or {FINAL!r} for this decoder, got {number}; name one of them."
                )
            if number == 0:
                handles.append(blocks[0].register_forward_pre_hook(before, with_kwargs=True))
            else:
                handles.append(blocks[number - 1].register_forward_hook(after(number)))
        yield
    finally:
        for handle in handles:
            handle.remove()
