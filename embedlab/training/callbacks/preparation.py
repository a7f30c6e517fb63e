"""Give a strategy its training statistics, and precompute the features of texts that will be needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from embedlab.data import DataModule
from embedlab.strategies.base import EmbeddingStrategy
from embedlab.strategies.contract import silent
from embedlab.training.callbacks.timing import Stopwatch

__all__ = ["Preparation"]


@final
class Preparation(Callback):
    """Give a strategy its training statistics, and have the features of the texts to come computed.

    What caches features is charged what they took, be they computed now or found on disk: a run costs the same whatever ran
    before it.

    Args:
        data: The run's data; statistics come from its training texts also while a stage trains on others.
        stopwatch: Where the time goes.
        progress: Told how many of how many texts are done.
    """

    def __init__(self, data: DataModule, stopwatch: Stopwatch, progress: Callable[[int, int], None] = silent) -> None:
        self.data, self.stopwatch, self.progress = data, stopwatch, progress

    def _make_ready(self, trainer: Trainer, strategy: LightningModule, texts: Sequence[str], phase: str) -> None:
        assert isinstance(strategy, EmbeddingStrategy)
        begun = time.perf_counter()
        with torch.no_grad():
            if not strategy.prepared:
                strategy.prepare_once(self.data.train_texts, self.progress)
                if phase == "score" and (cost := strategy.feature_cost()) is not None:  # of texts that are not scored
                    self.stopwatch.charge("features", time.perf_counter() - begun, cost)
                    begun = time.perf_counter()
            # Shared out; what is kept, all can read.
            alone = trainer.world_size == 1
            strategy.precompute(texts[trainer.global_rank :: trainer.world_size], self.progress if alone else silent)
            trainer.strategy.barrier()
            strategy.precompute(texts, self.progress)
        new = texts
        if phase == "score" and "features" in self.stopwatch.charges and strategy.features is not None:
            # What was read to train or to select is not read again, and was charged before.
            read = strategy.features.as_read
            known = {*map(read, self._fit_texts())}
            new = [text for text in texts if read(text) not in known]
        self.stopwatch.charge(phase, time.perf_counter() - begun, strategy.feature_cost(new))

    def _fit_texts(self) -> list[str]:
        return [*self.data.train_texts(), *([] if self.data.validation is None else self.data.eval_texts("validate"))]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before training, the training and validation texts; while a stage trains, its texts too."""
        fit = self._fit_texts()
        self._make_ready(trainer, pl_module, fit, "features")
        own = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning; a stage has data of its own
        if own is not self.data:
            known = set(fit)
            stage = [text for text in own.train_texts() if text not in known]
            self._make_ready(trainer, pl_module, stage, f"features of {self.stopwatch.phase}")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before a validation of its own, the validation texts."""
        if trainer.state.fn == "validate":
            self._make_ready(trainer, pl_module, self.data.eval_texts("validate"), "features")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before testing, the test texts."""
        self._make_ready(trainer, pl_module, self.data.eval_texts("test"), "score")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before predicting, its texts."""
        self._make_ready(trainer, pl_module, self.data.eval_texts("predict"), "score")
