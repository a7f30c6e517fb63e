"""Keep the latest whole state of a training, so that a killed run goes on from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, final

from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["Resumable"]

SAVE_EVERY: Final = 50  # steps between resumable checkpoints


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
