"""Checkpoints that a command line names: found, and checked before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final, cast

import torch

from embedlab import runs
from embedlab.errors import UserError
from embedlab.strategies.base import EmbeddingStrategy, Trainable
from embedlab.strategies.checkpoint import check_made, check_strategy

__all__ = ["check_checkpoint", "check_goes_on", "learned"]

RESTORED: Final = ("learning_rate", "weight_decay", "vectors_decay")  # with the optimiser, whatever is asked for


# Arguments that decide which parameters an optimiser holds, where the scores of a checkpoint stay the same.
OPTIMISED: Final = ("frozen",)


def check_goes_on(path: str, strategy: type, epochs: int | None) -> None:
    """Refuse a checkpoint that training of a strategy cannot go on from, as far as its class alone tells."""
    if (state := _state(path)) is None:
        return
    check_strategy(strategy, state)
    if "optimizer_states" not in state:
        raise UserError(
            f"`ckpt_path` must hold the whole state of a training, such as RUN/{runs.LAST}, but {path} holds weights only; "
            f"`embedlab test` takes it."
        )
    done = state.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {}).get("current", {}).get("processed", 0)
    if epochs is not None and 0 <= epochs <= done:
        raise UserError(
            f"`trainer.max_epochs` must be more than the {done} of `ckpt_path`, which are counted, got {epochs}; raise it."
        )


def check_checkpoint(path: str, strategy: EmbeddingStrategy, goes_on: bool) -> None:
    """Refuse a checkpoint that was not made for a strategy, before anything is loaded; see `strategies.checkpoint`.

    Args:
        path: The checkpoint.
        strategy: The strategy.
        goes_on: Whether training goes on from it, with the optimiser that it holds.
    """
    if (state := _state(path)) is None:
        return
    check_made(strategy, state)
    for name in RESTORED if goes_on and "training" in state else ():
        made, came = state["training"][name], getattr(cast(Trainable, strategy).plan, name)
        if came is not None and made != came:  # None is settled once it is known what trains
            raise UserError(
                f"`training.{name}` must be {made} for `ckpt_path`, whose optimiser goes on with that, got {came}; set it so, or "
                "train anew."
            )
    arguments = state.get("arguments") or {}
    for name in OPTIMISED if goes_on else ():
        if name in arguments and (made := arguments[name]) != (came := strategy.built_with.get(name)):
            raise UserError(
                f"`{name}` must be {json.dumps(made)} for `ckpt_path`, whose optimiser holds what trained then, got "
                f"{json.dumps(came)}; set it so, or train anew."
            )


def _state(path: str) -> dict[str, Any] | None:
    """Read a checkpoint; None in a form of another program's, of which Lightning says what it cannot read."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, UnpicklingError):
        return None
    return state


def learned(strategy: type[EmbeddingStrategy], checkpoint: str | None, best: Path) -> str | None:
    """Return the checkpoint of what a strategy has learned, or of the statistics of one that does not train, if there is one.

    Args:
        strategy: Its class.
        checkpoint: What was asked for.
        best: Where a run of the same configuration keeps its best epoch.

    Raises:
        UserError: If there is none of a strategy that trains: nothing is scored with untrained weights.
    """
    if checkpoint is not None:
        return checkpoint
    if best.exists():
        return str(best)
    if not issubclass(strategy, Trainable):
        return None
    raise UserError(
        f"`ckpt_path` must name what {strategy.__name__} has learned, got none, and {best} is not there; give "
        f"--ckpt_path RUN/{runs.BEST}."
    )
