"""Keep the weights that do best on validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from lightning.pytorch.callbacks import ModelCheckpoint

__all__ = ["MONITOR", "best"]

MONITOR: Final = "val/spearman"  # the selection rule of every strategy; never a test score


def best(folder: Path) -> ModelCheckpoint:
    """Keep the weights that do best on validation, as soon as it is done: before the epoch's end is kept as validated."""
    how: dict[str, Any] = {"save_weights_only": True, "enable_version_counter": False, "save_on_train_epoch_end": False}
    return ModelCheckpoint(folder, "best", monitor=MONITOR, mode="max", **how)
