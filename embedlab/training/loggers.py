"""Loggers of a run, told its folder and names."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

__all__ = ["set_up_loggers", "tell_configuration"]


def set_up_loggers(config: Any, run_dir: Path, name: str) -> None:
    """Tell loggers the run's folder and names; leave out Weights & Biases where it is not installed."""
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


def tell_configuration(loggers: Sequence[Logger], config: dict[str, Any]) -> None:
    """Give Weights & Biases the whole configuration, nested; other loggers keep theirs."""
    for logger in loggers:
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(experiment, "config"):
            experiment.config.update(config, allow_val_change=True)
