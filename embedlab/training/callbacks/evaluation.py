"""Correlate scores with labels, or search a collection, and write predictions."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, final

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from embedlab import runs
from embedlab.data import DataModule, Pairs, RoleTexts
from embedlab.distributed import gather_lists
from embedlab.errors import UserError
from embedlab.metrics import UndefinedCorrelation, pearson, spearman
from embedlab.training.callbacks.selection import goes_on_from
from embedlab.training.searching import measured

__all__ = ["Evaluation"]


@final
class Evaluation(Callback):
    """Correlate all scores of a set with its labels, once, in float64; the same for every strategy.

    A retrieval set to validate on is searched instead, by the vectors of its texts.

    Args:
        folder: The folder in which `predictions/` is written.

    Attributes:
        metrics: Of each set that was scored.
        selected: Which epoch is kept.
        stages: What is known of each stage that came first, as `train_stage` returns it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics: dict[str, dict[str, Any]] = {}
        self.selected: dict[str, Any] | None = None
        self.stages: dict[str, dict[str, Any]] = {}
        self._kept: list[tuple[Tensor, Any]] = []  # Pairs, or RoleTexts
        self._overlap: dict[str, list[str] | None] = {}
        self._own = False  # whether the checkpoint that is being loaded is of this run

    def _keep(self, outputs: Any, batch: Any) -> None:
        assert isinstance(outputs, Tensor)
        if isinstance(batch, RoleTexts):
            assert outputs.shape[:-1] == (len(batch),), f"one vector per text, got {tuple(outputs.shape)}"
            self._kept.append((outputs.detach().float().cpu(), batch))
            return
        assert isinstance(batch, Pairs)
        assert outputs.shape == (len(batch),), f"one score per pair, got {tuple(outputs.shape)} for {len(batch)}"
        self._kept.append((outputs.detach().float().cpu(), batch))

    def _correlate(self, columns: dict[str, Any]) -> dict[str, Any]:
        """Correlate scores with labels, and count the pairs of which training rows hold something."""
        result: dict[str, Any] = {"pairs": len(columns["id"]), "undefined": None}
        if "overlap" in columns:
            result["overlapping"] = sum(own != "none" for own in columns["overlap"])
        for metric, correlate in {"pearson": pearson, "spearman": spearman}.items():
            try:
                scores, labels = (torch.tensor(columns[own], dtype=torch.float64) for own in ("score", "label"))
                result[metric] = correlate(scores, labels)
            except UndefinedCorrelation as reason:
                result[metric], result["undefined"] = None, str(reason)
        return result

    def _take(self, name: str) -> dict[str, Any]:
        """Return what was kept of a set as columns, and forget it."""
        kept, self._kept = self._kept, []
        columns = _columns(gather_lists(kept))
        if (overlap := self._overlap.get(name)) is not None:
            columns["overlap"] = [overlap[own] for own in columns["id"]]
        return columns

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out what training rows hold of the pairs, before anything is timed; where none were read, nothing is told."""
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning
        if isinstance(data, DataModule):
            names = ("validation", *(f"test/{own}" for own in data.test_names))
            self._overlap = {name: data.overlap(name) for name in names}

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

    on_predict_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log `val/pearson` and `val/spearman`, or the measures of a search; keep the predictions of the best epoch.

        Raises:
            UserError: If a score or a vector is not finite: no epoch could be selected, nor a test set correlated.
        """
        data: DataModule = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning
        columns: dict[str, Any] | None = None
        if data.collection is None:
            columns = self._take("validation")
            _check_finite(columns, pl_module)
            result = self._correlate(columns)
        else:
            kept, self._kept = self._kept, []
            result = measured(data.collection, gather_lists(kept), pl_module)
        for name in data.validated:
            value = result[name.removeprefix("val/")]
            pl_module.log(name, float("nan") if value is None else value, prog_bar=name == data.monitor)
        value = result[data.monitor.removeprefix("val/")]
        if not self._is_better(value):
            return
        self.metrics["validation"] = result
        if columns is not None:
            self._write(trainer, "validation", columns)
        if trainer.state.fn == "fit" and value is not None:
            position = {"epoch": trainer.current_epoch, "step": trainer.global_step}
            self.selected = {**position, "monitor": data.monitor, "value": value}

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
            columns = self._take(name)
            result = self.metrics[name] = self._correlate(columns)
            self._write(trainer, name, columns)
            for metric in ("pearson", "spearman"):
                value = float("nan") if result[metric] is None else result[metric]
                pl_module.log(f"{name}/{metric}", value, add_dataloader_idx=False, batch_size=1)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the scores; there is nothing to compare them with."""
        self._write(trainer, "predict", self._take("predict"))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note whether the checkpoint is the run's own."""
        self._own = goes_on_from(trainer, self.folder / runs.CHECKPOINTS)

    def state_dict(self) -> dict[str, Any]:
        """Return which epoch is the best so far."""
        return {"selected": self.selected, "validation": self.metrics.get("validation")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over which epoch is the best so far; of another run nothing, as its best weights are not here."""
        if not self._own:
            return
        self.selected = state_dict["selected"]
        if state_dict["validation"] is not None:
            self.metrics["validation"] = state_dict["validation"]


def _check_finite(columns: dict[str, Any], strategy: LightningModule) -> None:
    """Refuse scores that are not finite; every process has them all, so that all stop."""
    bad = [number for number, score in enumerate(columns["score"]) if not math.isfinite(score)]
    if bad:
        kind, first = type(strategy), bad[0]
        raise UserError(
            f"`{kind.__module__}.{kind.__qualname__}` must give finite scores, got {columns['score'][first]} for pair "
            f"{columns['id'][first]} of the validation set and {len(bad)} such in all; look at what it makes of that pair."
        )


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
