"""Checkpoints that a command line names: found, and checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from embedlab import runs
from embedlab.errors import UserError
from embedlab.strategies.base import EmbeddingStrategy, Trainable
from embedlab.strategies.checkpoint import check_made

__all__ = ["check_checkpoint", "check_goes_on", "learned"]


def check_goes_on(path: str, epochs: int | None) -> None:
    """Refuse a checkpoint that training cannot go on from."""
    if (state := _state(path)) is None:
        return
    if "optimizer_states" not in state:
        raise UserError(
            f"`ckpt_path` must hold the whole state of a training, such as RUN/{runs.LAST}, but {path} holds weights only; "
            f"`embedlab test` takes it."
        )
    done = state.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {}).get("current", {}).get("completed", 0)
    if epochs is not None and 0 <= epochs <= done:
        raise UserError(
            f"`trainer.max_epochs` must be more than the {done} of `ckpt_path`, which are counted, got {epochs}; raise it."
        )


def check_checkpoint(path: str, strategy: EmbeddingStrategy) -> None:
    """Refuse a checkpoint that was not made for a strategy, before anything is loaded; see `strategies.checkpoint`."""
    if (state := _state(path)) is not None:
        check_made(strategy, state)


def _state(path: str) -> dict[str, Any] | None:
    """Read a checkpoint; None in a form of another program's, of which Lightning says what it cannot read."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, UnpicklingError):
        return None
    return state


def learned(strategy: type[Trainable], checkpoint: str | None, best: Path) -> str:
    """Return the checkpoint of what a strategy has learned; nothing is scored with untrained weights.

    Args:
        strategy: Its class.
        checkpoint: What was asked for.
        best: Where a run of the same configuration keeps its best epoch.

    Raises:
        UserError: If there is none.
    """
    if checkpoint is not None:
        return checkpoint
    if best.exists():
        return str(best)
    raise UserError(
        f"`ckpt_path` must name what {strategy.__name__} has learned, got none, and {best} is not there; give "
        f"--ckpt_path RUN/{runs.BEST}."
    )
