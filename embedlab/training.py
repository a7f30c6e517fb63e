"""`embedlab fit | validate | test | predict`: LightningCLI over a strategy and the data all strategies share.

A fit is: the strategy's stages in order, training, the best validation checkpoint tested, the result written. A
strategy without training goes the same way with nothing in the middle. Run again in the same folder it goes on
where it stopped.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import pkgutil
import sys
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from transformers.utils import logging as transformers_logging

from embedlab import records, runs, strategies
from embedlab.callbacks import Evaluation, Preparation, Progress, Stopwatch
from embedlab.checkpoints import RandomState, Resumable, best
from embedlab.data import DataModule
from embedlab.errors import UserError
from embedlab.strategies.base import EmbeddingStrategy, Stage, Trainable

__all__ = ["main"]

log = logging.getLogger("embedlab")

# Options of the trainer by which a run sees less than its data; noted where they are set.
PARTS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches")


class _CLI(LightningCLI):
    """The command line of one run."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add where a run is kept and what it is called."""
        parser.add_argument("--run_dir", type=str | None, default=None, help="Folder of this run.")
        parser.add_argument("--study", type=str, default="single", help="Study the run belongs to.")
        parser.add_argument("--label", type=str | None, default=None, help="Name of the strategy in tables.")
        parser.add_argument("--request", type=str | None, default=None, help="Hash of the request, set by `compare`.")

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone: a checkpoint never overrides what was typed."""

    def before_instantiate_classes(self) -> None:
        """Fill in what follows from the rest: names and folders."""
        config = self.config[self.subcommand]
        self._check(config)
        class_path = config.model.class_path
        config.label = config.label or class_path.rpartition(".")[2]
        seed = config.seed_everything
        folder = Path(config.run_dir or runs.run_folder(Path("runs"), config.study, config.label, seed))
        config.run_dir = str(folder)
        # What is not a fit leaves the fit's own files alone.
        self.run_dir = folder if self.subcommand == "fit" else folder / str(self.subcommand)
        config.trainer.default_root_dir = str(self.run_dir)
        config.trainer.num_sanity_val_steps = 0
        config.trainer.use_distributed_sampler = False  # the data module shares rows out itself, without repeats
        epochs, every = config.trainer.max_epochs, config.trainer.check_val_every_n_epoch
        if epochs is not None and every is not None and 0 < epochs < every:
            config.trainer.check_val_every_n_epoch = epochs  # or nothing would ever be validated
        if config.trainer.enable_progress_bar is None:
            config.trainer.enable_progress_bar = sys.stdout.isatty()
        self._loggers(config, f"{config.label}/seed-{seed}")

    def _check(self, config: Any) -> None:
        """Refuse a checkpoint that is none, before anything slow starts."""
        path = config.get("ckpt_path")
        if path is not None and not zipfile.is_zipfile(path):
            what = "a file that is no checkpoint" if Path(path).is_file() else "no such file"
            raise UserError(f"`ckpt_path` must name a checkpoint, such as RUN/{runs.BEST}, but {path} is {what}.")
        for name, bad in {"fast_dev_run": True, "barebones": True, "enable_checkpointing": False}.items():
            if self.subcommand == "fit" and config.trainer[name] is not None and bool(config.trainer[name]) == bad:
                raise UserError(
                    f"`trainer.{name}` must be left out, as a run keeps its best epoch, got {config.trainer[name]}; for a "
                    "quick try set `trainer.max_epochs` 1 and `data.train.limit`."
                )

    def _loggers(self, config: Any, name: str) -> None:
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
                arguments.save_dir = str(self.run_dir)
            if own.class_path.endswith("WandbLogger"):
                arguments.name = arguments.name or name
                arguments.group = arguments.get("group") or config.study
                arguments.project = arguments.project if arguments.project != "lightning_logs" else "embedlab"
                os.environ.setdefault("WANDB_SILENT", "true")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the callbacks that every run needs."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.stopwatch = Stopwatch()
        self.evaluation = Evaluation(self.run_dir)
        own = [self.stopwatch, Preparation(self.datamodule, self.stopwatch), self.evaluation, Progress(self.run_dir)]
        if self.subcommand == "fit":
            own += [RandomState(), best(self.run_dir / runs.CHECKPOINTS), Resumable(self.run_dir / runs.LAST)]
        given = self.config_init[self.subcommand].trainer.callbacks or []
        given = given if isinstance(given, list) else [given]
        try:
            return super().instantiate_trainer(callbacks=[*given, *own], **kwargs)
        except (MisconfigurationException, ImportError, ValueError) as error:
            raise UserError(f"`trainer` cannot be had as asked for: {' '.join(str(error).split())}") from error

    def after_instantiate_classes(self) -> None:
        """Read the data and check it against the strategy, before anything slow starts."""
        stage = self.subcommand
        self.datamodule.setup(stage)
        if stage == "fit":
            self.datamodule.setup("test")
        if stage != "fit" and isinstance(self.model, Trainable):
            self._find_checkpoint()
        if stage == "fit" and isinstance(self.model, Trainable):
            if self.datamodule.validation is None or self.trainer.max_epochs == 0:
                what = "`data.validation` must name scored pairs"
                what = what if self.datamodule.validation is None else "`trainer.max_epochs` must be at least 1"
                raise UserError(f"{what}, as the best epoch on them is what is kept, got none; set it.")
            self._check_steps(len(self.datamodule.train_dataloader()))
            batch = next(iter(self.datamodule.train_dataloader()))
            if not isinstance(batch, self.model.learns_from):
                kinds = " or ".join(kind.__name__.lower() for kind in self.model.learns_from)
                raise UserError(
                    f"`data.train` must give {kinds} to {type(self.model).__name__}, got {type(batch).__name__.lower()}; "
                    "name other columns or another source."
                )

    def _find_checkpoint(self) -> None:
        """Take what a run has learned where its own configuration is given; never score with untrained weights."""
        config = self.config_init[self.subcommand]
        best = Path(self.config[self.subcommand].run_dir) / runs.BEST
        if config.get("ckpt_path") is None and best.exists():
            config.ckpt_path = str(best)
        if config.get("ckpt_path") is None:
            raise UserError(
                f"`ckpt_path` must name what {type(self.model).__name__} has learned, got none, and {best} is not there; give "
                f"--ckpt_path RUN/{runs.BEST}."
            )

    def _check_steps(self, batches: int) -> None:
        """Refuse a training that ends before anything is validated."""
        trainer = self.trainer
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

    def fit(self, model: EmbeddingStrategy, datamodule: DataModule, **arguments: Any) -> None:
        """Run the stages, train, test the best checkpoint, write the result; files are written by the first process."""
        config, first = self.config.fit, self.trainer.is_global_zero
        text = self._parser("fit").dump(self.config.fit, skip_none=False)
        resolved, found = yaml.safe_load(text), datamodule.fingerprint()
        identity, settings = (records.identity(resolved, found, model, seed=own) for own in (True, False))
        best, last = self.run_dir / runs.BEST, self.run_dir / runs.LAST
        if first:
            self.lock = records.claim(self.run_dir, identity, config.request)
            if config.request is None:  # `compare` keeps the log of what it starts
                records.keep_log(self.run_dir)
            (self.run_dir / runs.CONFIG).write_text(text)
            for logger in self.trainer.loggers:
                experiment: Any = getattr(logger, "experiment", None)
                if hasattr(experiment, "config"):  # Weights & Biases: the whole configuration, nested
                    experiment.config.update(resolved, allow_val_change=True)
        try:
            if isinstance(model, Trainable):
                for stage in model.stages():
                    model.enter(stage)
                    self._stage(stage, model, config)
                model.enter(None)
                seed_everything(config.seed_everything, verbose=False)  # whether or not stages ran just now
                arguments["ckpt_path"] = arguments.get("ckpt_path") or (str(last) if last.exists() else None)
                self.trainer.fit(model, datamodule=datamodule, **arguments)
                if not best.exists():
                    raise RuntimeError("training ended without a single validation; lower `check_val_every_n_epoch`")
                self.trainer.test(model, datamodule=datamodule, ckpt_path=str(best), weights_only=True, verbose=False)
            else:
                self.trainer.validate(model, datamodule=datamodule, verbose=False)
                self.trainer.save_checkpoint(best, weights_only=True)
                self.trainer.test(model, datamodule=datamodule, verbose=False)
            tokens = self.stopwatch.tokens
        except BaseException as error:
            if isinstance(error, SystemExit) and self.trainer.interrupted:  # what Lightning makes of Ctrl-C
                error = KeyboardInterrupt()
            if first:
                runs.mark(self.run_dir, "failed", f"{type(error).__name__}: {error}".strip(": ").splitlines()[0])
            raise error
        if not first:
            return
        notes = list(model.notes)
        if model.backbone is not None and model.backbone.texts_cut:
            notes.append(f"{model.backbone.texts_cut} texts were cut to {model.backbone.window} tokens")
        if datamodule.train is not None and datamodule.train.limit == found["train"]["rows"]:
            notes.append(f"training cut to {datamodule.train.limit} rows")
        notes += [f"trainer.{name} {config.trainer[name]}" for name in PARTS if config.trainer[name] not in (None, 0)]
        if isinstance(model, Trainable) and self.evaluation.selected is None:
            undefined = self.evaluation.metrics["validation"]["undefined"]
            notes.append(f"no epoch could be selected, as {undefined}: the weights of the first validation are kept")
        measured = records.Measured(self.evaluation, self.stopwatch, tokens, self.trainer.world_size)
        records.finish(self.run_dir, config, identity, settings, model, datamodule, measured, notes)
        for name, metric in self.evaluation.metrics.items():
            pearson, spearman = metric["pearson"], metric["spearman"]
            shown = metric["undefined"] or f"Spearman {100 * spearman:.2f}, Pearson {100 * pearson:.2f}"
            print(f"{name}: {shown} ({metric['pairs']} pairs)")  # noqa: T201  # the command's answer
        print(f"run folder: {self.run_dir}")  # noqa: T201

    def _stage(self, stage: Stage, model: Trainable, config: Any) -> None:
        """Train a stage that comes first, from where it was killed; load it if it was finished before."""
        folder = self.run_dir / "stages" / stage.name
        weights, last, done = folder / "weights.ckpt", folder / "last.ckpt", folder / "done.json"
        if done.exists():
            model.configure_model()
            checkpoint = torch.load(weights, map_location="cpu", weights_only=True)
            model.on_load_checkpoint(checkpoint)
            model.load_state_dict(checkpoint["state_dict"], strict=False)
            self.stopwatch.add(json.loads(done.read_text()))
            return
        log.info("stage %s", stage.name)
        data = DataModule(train=stage.source, seed=config.seed_everything, batch_size=stage.batch_size)
        stopwatch = Stopwatch(stage.name)
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
                *(Preparation(self.datamodule, stopwatch), Progress(self.run_dir, stage.name), stopwatch),
                *(RandomState(), Resumable(last)),
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
        self.stopwatch.add(counts)
        if trainer.is_global_zero:
            runs.write_json_atomic(done, counts)
            last.unlink(missing_ok=True)

    def after_predict(self) -> None:
        """Say where the scores are."""
        print(f"scores: {runs.predictions_file(self.run_dir, 'predict')}")  # noqa: T201


def _named(strategy: Any) -> str:
    """Return Lightning's name of how processes work together; an object cannot serve two trainers."""
    if not isinstance(strategy, str):
        raise UserError(
            f"`trainer.strategy` must be a name such as ddp where a stage comes before training, got {strategy}; name one."
        )
    return strategy


def main(arguments: Sequence[str]) -> int:
    """Run one of the four subcommands.

    Args:
        arguments: The subcommand and its options.

    Returns:
        Exit status 0.

    Raises:
        UserError: If something asked for cannot be done.
    """
    _quiet()
    for module in pkgutil.iter_modules(strategies.__path__):  # so that class names need no import path
        importlib.import_module(f"{strategies.__name__}.{module.name}")
    try:
        _CLI(
            EmbeddingStrategy,
            DataModule,
            subclass_mode_model=True,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs={"allow_abbrev": False, "exit_on_error": False},
            args=None if list(arguments) == sys.argv[1:] else list(arguments),
        )
    except ArgumentError as error:
        raise UserError(" ".join(str(error).split())) from error
    except ValueError as error:
        if isinstance(error.__cause__, UserError):  # the parser wraps what a constructor says
            raise error.__cause__ from None
        raise
    return 0


def _quiet() -> None:
    """Silence what a user of embedlab can do nothing about."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("lightning.pytorch", "lightning.fabric", "httpx", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for message in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*isinstance\\(treespec.*",
        ".*`is_gradient_checkpointing`.*",
        ".*Experiment logs directory.*",
        ".*module\\(s\\) in eval mode.*",
        ".*number of training batches.*smaller than the logging interval.*",
        ".*save_weights_only.*",
    ):
        warnings.filterwarnings("ignore", message)
