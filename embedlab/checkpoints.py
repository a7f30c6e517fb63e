"""What is kept of a run while it trains: the best weights, and all that a killed run needs to go on from there."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

__all__ = ["MONITOR", "RandomState", "Resumable", "checkpoints"]

MONITOR = "val/spearman"  # the selection rule of every strategy; never a test score
SAVE_EVERY = 50  # steps between resumable checkpoints


def checkpoints(folder: Path) -> list[Callback]:
    """Keep the weights that do best on validation, and the latest whole state for resuming."""
    best = ModelCheckpoint(
        folder, "best", monitor=MONITOR, mode="max", save_weights_only=True, enable_version_counter=False
    )
    return [RandomState(), best, Resumable(folder / "last.ckpt")]


@final
class Resumable(Callback):
    """Keep the latest whole state, so that a killed run goes on from there.

    An epoch's last step is kept only once its validation is done: Lightning takes a state of that step for a finished
    epoch, and the validation would be left out for good.

    Args:
        path: The checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.kept = path, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from where the run goes on."""
        self.kept = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Keep a step inside an epoch."""
        if not trainer.is_last_batch:
            self._keep(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the end of an epoch, validated if it is to be."""
        self._keep(trainer)

    def _keep(self, trainer: Trainer) -> None:
        if trainer.global_step - self.kept >= SAVE_EVERY:
            trainer.save_checkpoint(self.path)
            self.kept = trainer.global_step


@final
class RandomState(Callback):
    """Make a resumed run draw the random numbers that the uninterrupted one would have drawn."""

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every random generator, as tensors and plain numbers."""
        kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # type: ignore[misc]
        version, internal, gauss_next = random.getstate()
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
            "python": [version, list(internal), gauss_next],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's state until training goes on; set-up in between draws numbers of its own."""
        self._restored = state_dict

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Restore before the first step."""
        if self._restored is None:
            return
        state, self._restored = self._restored, None
        torch.set_rng_state(state["torch"])
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"])
        kind, keys, position, has_gauss, gauss = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
        version, internal, gauss_next = state["python"]
        random.setstate((version, tuple(internal), gauss_next))
