"""Keep the weights that do best on validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

__all__ = ["Best", "goes_on_from"]


def goes_on_from(trainer: Trainer, folder: Path) -> bool:
    """Tell whether the checkpoint that is being loaded lies in a folder, wherever that was when it was written."""
    return trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve().parent == folder.resolve()


@final
class Best(ModelCheckpoint):
    """Keep the weights that do best on validation, as soon as it is done: before the epoch's end is kept as validated.

    A run whose folder was moved meanwhile goes on with the best that lies in it. Of a checkpoint of another run, which
    weights did best there is not taken over.

    Args:
        folder: Where they are kept.
        monitor: The number that is highest when they do best; see `DataModule.monitor`.
    """

    def __init__(self, folder: Path, monitor: str) -> None:
        how: dict[str, Any] = {"save_weights_only": True, "enable_version_counter": False}
        super().__init__(folder, "best", monitor=monitor, mode="max", save_on_train_epoch_end=False, **how)
        self.folder, self._own = folder, False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note whether the checkpoint is the run's own."""
        self._own = goes_on_from(trainer, self.folder)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over which weights did best, and where they are now."""
        if not self._own:
            return

        def here(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        paths = {name: here(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        models = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "dirpath": self.dirpath, "best_k_models": models})
