"""What is checked before a run starts anything slow."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from embedlab import runs
from embedlab.data import DataModule
from embedlab.errors import UserError
from embedlab.strategies.base import Trainable

__all__ = ["check_request", "check_training", "learned"]


def check_request(subcommand: str, config: Any) -> None:
    """Refuse what cannot be done, before anything slow starts.

    Args:
        subcommand: fit, validate, test or predict.
        config: Its configuration.

    Raises:
        UserError: If a checkpoint is none, or a fit could keep nothing.
    """
    path = config.get("ckpt_path")
    if path is not None and not zipfile.is_zipfile(path):
        what = "a file that is no checkpoint" if Path(path).is_file() else "no such file"
        raise UserError(f"`ckpt_path` must name a checkpoint, such as RUN/{runs.BEST}, but {path} is {what}.")
    for name, bad in {"fast_dev_run": True, "barebones": True, "enable_checkpointing": False}.items():
        if subcommand == "fit" and config.trainer[name] is not None and bool(config.trainer[name]) == bad:
            raise UserError(
                f"`trainer.{name}` must be left out, as a run keeps its best epoch, got {config.trainer[name]}; for a "
                "quick try set `trainer.max_epochs` 1 and `data.train.limit`."
            )


def check_training(strategy: Trainable, data: DataModule, trainer: Trainer) -> None:
    """Refuse a training in which no epoch could be selected, or data that the strategy does not learn from.

    Raises:
        UserError: If so.
    """
    if data.validation is None or trainer.max_epochs == 0:
        what = "`data.validation` must name scored pairs"
        what = what if data.validation is None else "`trainer.max_epochs` must be at least 1"
        raise UserError(f"{what}, as the best epoch on them is what is kept, got none; set it.")
    _check_steps(trainer, len(data.train_dataloader()))
    batch = next(iter(data.train_dataloader()))
    if not isinstance(batch, strategy.learns_from):
        kinds = " or ".join(kind.__name__.lower() for kind in strategy.learns_from)
        raise UserError(
            f"`data.train` must give {kinds} to {type(strategy).__name__}, got {type(batch).__name__.lower()}; "
            "name other columns or another source."
        )


def learned(strategy: type[Trainable], checkpoint: str | None, best: Path) -> str:
    """Return the checkpoint of what a strategy has learned; nothing is scored with untrained weights.

    Args:
        strategy: Its class.
        checkpoint: What was asked for.
        best: Where a run of the same configuration keeps its best epoch.

    Raises:
        UserError: If there is none.
    """
    if checkpoint is not None:
        return checkpoint
    if best.exists():
        return str(best)
    raise UserError(
        f"`ckpt_path` must name what {strategy.__name__} has learned, got none, and {best} is not there; give "
        f"--ckpt_path RUN/{runs.BEST}."
    )


def _check_steps(trainer: Trainer, batches: int) -> None:
    """Refuse a training that ends before anything is validated."""
    if trainer.max_steps == -1 or trainer.val_check_interval != 1.0 or trainer.check_val_every_n_epoch is None:
        return
    first = -(-batches // trainer.accumulate_grad_batches) * trainer.check_val_every_n_epoch
    if isinstance(trainer.limit_train_batches, float | int) and trainer.limit_train_batches != 1.0:
        return  # an epoch is shorter than it looks
    if trainer.max_steps < first:
        raise UserError(
            f"`trainer.max_steps` must reach the first validation, at step {first}, got {trainer.max_steps}; raise it, or "
            "validate within an epoch with `trainer.val_check_interval`."
        )
