"""What is kept of a run while it trains: the best weights, and all that a killed run needs to go on from there."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from embedlab.distributed import gather_lists

__all__ = ["MONITOR", "RandomState", "Resumable", "best"]

MONITOR = "val/spearman"  # the selection rule of every strategy; never a test score
SAVE_EVERY = 50  # steps between resumable checkpoints


def best(folder: Path) -> ModelCheckpoint:
    """Keep the weights that do best on validation, as soon as it is done: before the epoch's end is kept as validated."""
    how: dict[str, Any] = {"save_weights_only": True, "enable_version_counter": False, "save_on_train_epoch_end": False}
    return ModelCheckpoint(folder, "best", monitor=MONITOR, mode="max", **how)


@final
class Resumable(Callback):
    """Keep the latest whole state, so that a killed run goes on from there.

    A step after which a validation is due is kept only once that is done: Lightning takes a state of such a step for
    one that was validated, and the validation would be left out for good.

    Args:
        path: The checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.kept = path, -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from where the run goes on."""
        self.kept = trainer.global_step
        # Lightning leaves this out where `max_steps` is set, and a run resumed from the end of an epoch stops early.
        epochs: Any = trainer.fit_loop.epoch_progress.current
        epochs.completed = epochs.processed

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep a step inside an epoch, unless a validation follows or gradients wait to be stepped with."""
        between = trainer.val_check_batch
        safe = between is not None and trainer.check_val_every_n_epoch is not None and (batch_idx + 1) % between != 0
        if safe and not trainer.is_last_batch and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._keep(trainer, SAVE_EVERY)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the end of an epoch, validated if it is to be."""
        self._keep(trainer, SAVE_EVERY)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the end, so that a run killed in testing need not train again."""
        self._keep(trainer, 1)

    def _keep(self, trainer: Trainer, steps: int) -> None:
        if trainer.global_step - self.kept >= steps:
            trainer.save_checkpoint(self.path)
            self.kept = trainer.global_step


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
