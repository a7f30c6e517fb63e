"""Write how far a run is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer

from embedlab import runs
from embedlab.strategies.base import Trainable

__all__ = ["Progress"]


@final
class Progress(Callback):
    """Say in `progress.json` what a run is doing and how long it will take, at most once a second.

    Args:
        folder: The run folder.
        stage: Name of the stage that trains; "training" for the main one.
    """

    def __init__(self, folder: Path, stage: str = "training") -> None:
        self.folder, self.stage = folder, stage
        self._phase, self._begun, self._first, self._written = "", 0.0, 0, 0.0
        self.tells = True

    def tell(self, phase: str, done: int, total: int) -> None:
        """Note that `done` of `total` steps of a phase are done."""
        if not self.tells:
            return
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._begun, self._first = phase, now, done
        elif now - self._written < 1.0 and done < total:
            return
        self._written = now
        steps = done - self._first
        left = (now - self._begun) / steps * (total - done) if steps > 0 else None
        runs.write_progress(self.folder, runs.Progress(phase, done, total, left))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Of several processes, the first tells."""
        self.tells = trainer.is_global_zero

    def features(self, done: int, total: int) -> None:
        """Note that the features of `done` of `total` texts are there."""
        self.tell("extracting features", done, total)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Count a step."""
        assert isinstance(pl_module, Trainable)
        self.tell(self.stage, trainer.global_step, int(trainer.estimated_stepping_batches))

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Count a validation batch."""
        self.tell("validating", int(args[3]) + 1, int(sum(trainer.num_val_batches)))

    def on_test_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Count a test batch."""
        before = sum(trainer.num_test_batches[: args[4] if len(args) > 4 else 0])
        self.tell("testing", int(before + args[3] + 1), int(sum(trainer.num_test_batches)))
