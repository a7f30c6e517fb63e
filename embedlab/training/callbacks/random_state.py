"""Carry the state of every random generator over a resume."""

from __future__ import annotations

import random
from typing import Any, final

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from embedlab.distributed import gather_lists

__all__ = ["RandomState"]


@final
class RandomState(Callback):
    """Make a resumed run draw the random numbers that the uninterrupted one would have drawn.

    Each process of a run draws numbers of its own, or their dropout would be the same.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Part from the other processes; the first one draws what a run of one process would."""
        if trainer.global_rank > 0:
            seed = (torch.initial_seed() + 7919 * trainer.global_rank) % 2**32
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every random generator of every process, as tensors and plain numbers."""
        kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # type: ignore[misc]
        version, internal, gauss_next = random.getstate()
        own = {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
            "python": [version, list(internal), gauss_next],
        }
        return {"processes": gather_lists([own])}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's state until training goes on; set-up in between draws numbers of its own."""
        self._restored = state_dict

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Restore before the first step."""
        if self._restored is None:
            return
        states, self._restored = self._restored["processes"], None
        if len(states) != trainer.world_size:
            return  # nothing could make it the same run
        state = states[trainer.global_rank]
        torch.set_rng_state(state["torch"])
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"])
        kind, keys, position, has_gauss, gauss = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
        version, internal, gauss_next = state["python"]
        random.setstate((version, tuple(internal), gauss_next))
