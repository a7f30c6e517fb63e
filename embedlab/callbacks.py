"""What happens around a strategy's steps: statistics, evaluation, progress, cost.

Lightning calls these; strategies know nothing of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from embedlab import runs
from embedlab.backbone import Backbone
from embedlab.checkpoints import MONITOR
from embedlab.data import DataModule, Pairs
from embedlab.distributed import gather_lists, share_sum
from embedlab.features import Cost
from embedlab.metrics import UndefinedCorrelation, pearson, spearman
from embedlab.strategies.base import EmbeddingStrategy, Trainable

__all__ = ["Evaluation", "Preparation", "Progress", "Stopwatch"]


@final
class Stopwatch(Callback):
    """Seconds by phase, and tokens trained on; carried over when a run resumes.

    Args:
        phase: What training counts as: a stage's name, or "train".
    """

    def __init__(self, phase: str = "train") -> None:
        self.phase = phase
        self.seconds: dict[str, float] = {}
        self.charges: dict[str, tuple[float, float]] = {}  # seconds that latents took; of these, found on disk
        self._begun: float | None = None
        self._backbone: Backbone | None = None
        self._tokens_before = 0  # in earlier stages, and before a resume; by all processes
        self._tokens_at_start = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note which decoder counts the tokens."""
        assert isinstance(pl_module, EmbeddingStrategy)
        self._backbone = pl_module.backbone
        if stage == "fit" and self._backbone is not None:
            self._tokens_at_start = self._backbone.trained_tokens

    @property
    def tokens(self) -> int:
        """Tokens trained on by all processes; all of them must ask."""
        own = 0 if self._backbone is None else self._backbone.trained_tokens - self._tokens_at_start
        return self._tokens_before + share_sum(own)

    def add(self, state: dict[str, Any]) -> None:
        """Count a stage that came first, by the state of its own stopwatch."""
        self.seconds |= state["seconds"]
        self.charges |= {phase: (total, found) for phase, (total, found) in state["charges"].items()}
        self._tokens_before += state["tokens"]

    def charge(self, phase: str, spent: float, cost: Cost | None) -> None:
        """Count what it took to make texts ready.

        Args:
            phase: What it was for.
            spent: Seconds that went by; what latents took is counted instead where they are kept.
            cost: Of the latents.
        """
        if cost is None:
            if phase != "score":  # scoring is being timed
                self.seconds[phase] = self.seconds.get(phase, 0.0) + spent
            return
        if self._begun is not None:
            self._begun += spent
        read = sum(gather_lists([cost.seconds - cost.seconds_found]))  # by any of this run's processes
        self.charges[phase] = (cost.seconds, max(0.0, cost.seconds - read))

    def _stop(self) -> None:
        if self._begun is not None:
            self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + time.perf_counter() - self._begun
            self._begun = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting training time."""
        self._begun = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Count the step, so that a killed run has counted what its checkpoint holds."""
        self._stop()
        self._begun = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop counting."""
        self._stop()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation in between is not training."""
        self._stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on counting."""
        if trainer.state.fn == "fit":
            self._begun = time.perf_counter()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting the scoring of test sets."""
        self._begun = time.perf_counter()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop counting."""
        assert self._begun is not None
        self.seconds["score"] = time.perf_counter() - self._begun
        self._begun = None

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds so far, and the tokens of all processes."""
        charges = {phase: list(own) for phase, own in self.charges.items()}
        return {"seconds": dict(self.seconds), "charges": charges, "tokens": self.tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's counts."""
        self.seconds = dict(state_dict["seconds"])
        self.charges |= {phase: (total, found) for phase, (total, found) in state_dict["charges"].items()}
        self._tokens_before = int(state_dict["tokens"])


@final
class Preparation(Callback):
    """Give a strategy its training statistics, and warning of the texts to come.

    What keeps latents is charged what they took, be they read now or found on disk: a run costs the same whatever ran
    before it.

    Args:
        data: The run's data; statistics come from its training texts also while a stage trains on others.
        stopwatch: Where the time goes.
    """

    def __init__(self, data: DataModule, stopwatch: Stopwatch) -> None:
        self.data, self.stopwatch = data, stopwatch

    def _make_ready(self, trainer: Trainer, strategy: LightningModule, texts: Sequence[str], phase: str) -> None:
        assert isinstance(strategy, EmbeddingStrategy)
        begun = time.perf_counter()
        with torch.no_grad():
            strategy.ensure_prepared(self.data.train_texts)
            strategy.warm(texts[trainer.global_rank :: trainer.world_size])  # shared out; what is kept, all can read
            trainer.strategy.barrier()
            strategy.warm(texts)
        self.stopwatch.charge(phase, time.perf_counter() - begun, strategy.charge(texts))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before training, the training and validation texts; while a stage trains, its texts too."""
        fit = [*self.data.train_texts(), *([] if self.data.validation is None else self.data.eval_texts("validate"))]
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


@final
class Evaluation(Callback):
    """Correlate all scores of a set with its labels, once, in float64; the same for every strategy.

    Args:
        folder: The folder in which `predictions/` is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics: dict[str, dict[str, Any]] = {}
        self.selected: dict[str, Any] | None = None
        self._kept: list[tuple[Tensor, Pairs]] = []

    def _keep(self, outputs: Any, batch: Any) -> None:
        assert isinstance(outputs, Tensor)
        assert isinstance(batch, Pairs)
        assert outputs.shape == (len(batch),), f"one score per pair, got {tuple(outputs.shape)} for {len(batch)}"
        self._kept.append((outputs.detach().float().cpu(), batch))

    def _correlate(self, columns: dict[str, Any]) -> dict[str, Any]:
        """Correlate scores with labels."""
        result: dict[str, Any] = {"pairs": len(columns["id"]), "undefined": None}
        for metric, correlate in {"pearson": pearson, "spearman": spearman}.items():
            try:
                scores, labels = (torch.tensor(columns[own], dtype=torch.float64) for own in ("score", "label"))
                result[metric] = correlate(scores, labels)
            except UndefinedCorrelation as reason:
                result[metric], result["undefined"] = None, str(reason)
        return result

    def _take(self) -> dict[str, Any]:
        """Return what was kept as columns, and forget it."""
        kept, self._kept = self._kept, []
        return _columns(gather_lists(kept))

    def _write(self, trainer: Trainer, name: str, columns: dict[str, Any]) -> None:
        if not trainer.is_global_zero:
            return
        path = runs.predictions_file(self.folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path.with_suffix(".unfinished"))
        os.replace(path.with_suffix(".unfinished"), path)

    def _is_better(self, value: float | None) -> bool:
        """Tell whether an epoch is kept, as the checkpoint of the best weights decides it: in float32, NaN last."""
        if "validation" not in self.metrics or value is None:
            return "validation" not in self.metrics
        best = float("-inf") if self.selected is None else self.selected["value"]
        return bool(torch.tensor(value, dtype=torch.float32) > torch.tensor(best, dtype=torch.float32))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a batch's scores."""
        self._keep(outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log `val/pearson` and `val/spearman`; keep the predictions of the best epoch."""
        columns = self._take()
        result = self._correlate(columns)
        for metric in ("pearson", "spearman"):
            value = result[metric]
            pl_module.log(f"val/{metric}", float("nan") if value is None else value, prog_bar=metric == "spearman")
        value = result["spearman"]
        if not self._is_better(value):
            return
        self.metrics["validation"] = result
        self._write(trainer, "validation", columns)
        if trainer.state.fn == "fit" and value is not None:
            position = {"epoch": trainer.current_epoch, "step": trainer.global_step}
            self.selected = {**position, "monitor": MONITOR, "value": value}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a batch's scores; a set is finished when its last batch is."""
        self._keep(outputs, batch)
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning
        if batch_idx + 1 == trainer.num_test_batches[dataloader_idx]:
            name = f"test/{data.test_names[dataloader_idx]}"
            columns = self._take()
            result = self.metrics[name] = self._correlate(columns)
            self._write(trainer, name, columns)
            for metric in ("pearson", "spearman"):
                value = float("nan") if result[metric] is None else result[metric]
                pl_module.log(f"{name}/{metric}", value, add_dataloader_idx=False, batch_size=1)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a batch's scores."""
        self._keep(outputs, batch)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the scores; there is nothing to compare them with."""
        self._write(trainer, "predict", self._take())

    def state_dict(self) -> dict[str, Any]:
        """Return which epoch is the best so far."""
        return {"selected": self.selected, "validation": self.metrics.get("validation")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.selected = state_dict["selected"]
        if state_dict["validation"] is not None:
            self.metrics["validation"] = state_dict["validation"]


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
        """Listen to the strategy's own long work; of several processes the first tells."""
        self.tells = trainer.is_global_zero
        if isinstance(pl_module, EmbeddingStrategy):
            pl_module.report = lambda done, total: self.tell("extracting latents", done, total)

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


def _columns(kept: list[tuple[Tensor, Pairs]]) -> dict[str, Any]:
    """Turn kept batches into columns, in the order of the pairs' ids."""
    rows = []
    for scores, batch in kept:
        labels = [float("nan")] * len(batch) if batch.score is None else batch.score.tolist()
        genre = batch.meta.get("genre", [""] * len(batch))
        rows += list(zip(batch.ids, scores.tolist(), labels, genre, batch.first, batch.second, strict=True))
    rows.sort(key=lambda row: row[0])
    names = ("id", "score", "label", "genre", "first", "second")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)) if rows else {name: [] for name in names}
