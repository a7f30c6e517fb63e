"""Training stages that come before the main one."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from embedlab import runs
from embedlab.data import DataModule
from embedlab.errors import UserError
from embedlab.strategies.base import Stage, Trainable
from embedlab.training.callbacks import Finite, Preparation, Progress, RandomState, Resumable, Stopwatch

__all__ = ["train_stage"]

log = logging.getLogger(__name__)


def train_stage(
    stage: Stage, model: Trainable, config: Any, run_dir: Path, main_data: DataModule, main_stopwatch: Stopwatch
) -> None:
    """Train a stage that comes first, from where it was killed; load it if it was finished before.

    Args:
        stage: The stage.
        model: The strategy, set to it.
        config: Of the whole run.
        run_dir: The run folder.
        main_data: The run's own data, whose training texts give the statistics.
        main_stopwatch: The run's own, to which the stage's time is added.
    """
    folder = run_dir / runs.STAGES / stage.name
    weights, last, done = folder / "weights.ckpt", folder / "last.ckpt", folder / "done.json"
    if done.exists():
        model.configure_model()
        checkpoint = torch.load(weights, map_location="cpu", weights_only=True)
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"], strict=False)
        main_stopwatch.add(json.loads(done.read_text()))
        return
    log.info("stage %s", stage.name)
    filters = main_data.leak_filter != "none"
    data = DataModule(
        train=stage.source,
        validation=main_data.validation if filters else None,  # to be filtered by, else nothing need be read
        test=main_data.test if filters else None,
        seed=config.seed_everything,
        batch_size=stage.batch_size,
        leak_filter=main_data.leak_filter,
    )
    try:
        data.setup("fit")
    except UserError as error:  # the source is an option of the strategy here
        raise UserError(f"stage {stage.name}: {str(error).replace('`data.train', '`source', 1)}") from None
    stopwatch, progress = Stopwatch(stage.name), Progress(run_dir, stage.name)
    trainer = Trainer(
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        num_nodes=config.trainer.num_nodes,
        strategy=_named(config.trainer.strategy),
        precision=config.trainer.precision,
        gradient_clip_val=config.trainer.gradient_clip_val,
        gradient_clip_algorithm=config.trainer.gradient_clip_algorithm,
        max_epochs=stage.epochs,
        log_every_n_steps=config.trainer.log_every_n_steps,
        limit_val_batches=0,
        logger=CSVLogger(str(folder), name="", version=""),
        callbacks=[
            *(Preparation(main_data, stopwatch, progress.features), progress, stopwatch),
            *(Finite(), RandomState(), Resumable(last)),
        ],
        default_root_dir=str(folder),
        enable_checkpointing=False,
        use_distributed_sampler=False,
        enable_progress_bar=config.trainer.enable_progress_bar,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data, ckpt_path=str(last) if last.exists() else None)
    trainer.save_checkpoint(weights, weights_only=True)
    counts = stopwatch.state_dict()
    main_stopwatch.add(counts)
    if trainer.is_global_zero:
        runs.write_json_atomic(done, counts)
        last.unlink(missing_ok=True)


def _named(strategy: Any) -> str:
    """Return Lightning's name of how processes work together; an object cannot serve two trainers."""
    if not isinstance(strategy, str):
        raise UserError(
            f"`trainer.strategy` must be a name such as ddp where a stage comes before training, got {strategy}; name one."
        )
    return strategy
