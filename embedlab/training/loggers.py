"""Loggers of a run, told its folder and names."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from embedlab.errors import UserError

__all__ = ["hush", "set_up_loggers", "tell_configuration"]


def set_up_loggers(config: Any, run_dir: Path, name: str) -> None:
    """Tell loggers the run's folder and names; leave out Weights & Biases where it is not installed.

    Raises:
        UserError: If Weights & Biases is to go online and nobody has logged in.
    """
    loggers = config.trainer.logger
    if not loggers or isinstance(loggers, bool):
        return
    if not isinstance(loggers, list):
        loggers = config.trainer.logger = [loggers]
    if importlib.util.find_spec("wandb") is None:
        loggers[:] = [own for own in loggers if not own.class_path.endswith("WandbLogger")]
    for own in loggers:
        arguments = own.init_args
        if "save_dir" in arguments:
            arguments.save_dir = str(run_dir)
        if own.class_path.endswith("WandbLogger"):
            arguments.name = arguments.name or name
            arguments.group = arguments.get("group") or config.study
            arguments.project = arguments.project if arguments.project != "lightning_logs" else "embedlab"
            os.environ.setdefault("WANDB_SILENT", "true")
            if arguments.get("offline") is False:
                _check_login()


def _check_login() -> None:
    """Refuse to go online where nobody has logged in."""
    import wandb  # half a second, for who asks for it

    if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.login(prompt=False):
        raise UserError(
            "`trainer.logger.offline` must be true where nobody has logged in to Weights & Biases, got false; run `wandb login` "
            "first, or leave it out."
        )


def hush(loggers: Sequence[Logger]) -> None:
    """Make Weights & Biases silent, if it is to be, before Lightning gives it a setting that it warns of."""
    if os.environ.get("WANDB_SILENT") == "true" and any(isinstance(own, WandbLogger) for own in loggers):
        import wandb

        wandb.termsetup(wandb.Settings(silent=True), None)


def tell_configuration(loggers: Sequence[Logger], config: dict[str, Any]) -> None:
    """Give Weights & Biases the whole configuration, nested; other loggers keep theirs."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.config.update(config, allow_val_change=True)
