"""`embedlab fit | validate | test | predict`: LightningCLI over a strategy and the data all strategies share.

A fit is: the strategy's stages in order, training, the best validation checkpoint tested, the result written. A
strategy without training goes the same way with nothing in the middle. Run again in the same folder it goes on
where it stopped.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from embedlab import runs
from embedlab.data import DataModule
from embedlab.errors import UserError
from embedlab.runs.claim import claim
from embedlab.runs.folder import write_text_atomic
from embedlab.strategies.base import EmbeddingStrategy, Trainable
from embedlab.training import checkpoints, checks, help, result
from embedlab.training.callbacks import (
    Best,
    Evaluation,
    Finite,
    Preparation,
    Progress,
    RandomState,
    Resumable,
    Stopwatch,
)
from embedlab.training.complaints import complaint, with_class_first
from embedlab.training.identity import identify
from embedlab.training.log import goes_to_log, keep_log
from embedlab.training.loggers import hush, set_up_loggers, tell_configuration
from embedlab.training.stages import train_stage
from embedlab.training.start import meant_for_users, prepare, run
from embedlab.training.typed import as_typed

__all__ = ["RunCLI", "main"]


log = logging.getLogger(__name__)


class RunCLI(LightningCLI):
    """The command line of one run.

    Args:
        arguments: The subcommand and its options.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.own_parsers: list[LightningArgumentParser] = []  # one per subcommand, in order
        self.new_folders: list[Path] = []  # innermost first
        self.model_options: set[str] = set()  # of the strategy, once it is known
        try:
            super().__init__(
                EmbeddingStrategy,
                DataModule,
                subclass_mode_model=True,
                save_config_callback=None,
                seed_everything_default=0,
                auto_configure_optimizers=False,
                parser_class=help.HelpfulParser,
                parser_kwargs={"prog": "embedlab", "allow_abbrev": False, "exit_on_error": False},
                args=list(arguments),
            )
        except ValueError as error:
            _raise_typed(error, self.model_options, self.new_folders)
            raise

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add where a run is kept and what it is called."""
        self.own_parsers.append(parser)
        parser.add_argument("--run_dir", type=str | None, default=None, help="Folder of this run.")
        parser.add_argument("--study", type=str, default="single", help="Study the run belongs to.")
        parser.add_argument("--label", type=str | None, default=None, help="Name of the strategy in tables.")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse what was given, and nothing else."""
        self.config = self.parse(args)
        config = self.config[self.config.subcommand]
        config.run_dir = runs.where_it_lies([Path(str(own)) for own in config.get("config") or []], config.run_dir)
        checks.check_request(self.config.subcommand, config)
        # Out of Lightning's sight, which would lay what a checkpoint says over what was typed.
        self.checkpoint, config.ckpt_path = config.get("ckpt_path"), None

    def parse(self, arguments: Sequence[str]) -> Namespace:
        """Parse a command line.

        Raises:
            UserError: If there is anything wrong with it.
        """
        try:
            return self.parser.parse_args([arguments[0], *with_class_first(arguments[1:])])
        except ArgumentError as error:
            own = dict(zip(self.subcommands(), self.own_parsers, strict=True)).get(arguments[0], self.parser)
            raise UserError(complaint(str(error), own, arguments)) from error

    def plain(self, config: Namespace) -> dict[str, Any]:
        """Return a configuration of the subcommand as plain data."""
        return dict(yaml.safe_load(self.parser.dump(config, skip_none=False))[config.subcommand])

    def before_instantiate_classes(self) -> None:
        """Fill in what follows from the rest: names and folders."""
        config = self.config[self.subcommand]
        config.ckpt_path = self.checkpoint
        class_path = config.model.class_path
        self.model_options = {*inspect.signature(checks.class_of(config)).parameters} - {*vars(config)}
        config.label = config.label or class_path.rpartition(".")[2]
        seed = config.seed_everything
        folder = Path(config.run_dir or runs.run_folder(Path("runs"), config.study, config.label, seed))
        config.run_dir = str(folder)
        # What is not a fit leaves the fit's own files alone.
        self.run_dir = folder if self.subcommand == "fit" else folder / str(self.subcommand)
        config.trainer.default_root_dir = str(self.run_dir)
        _settle(config.trainer)
        set_up_loggers(config, self.run_dir, f"{config.label}/seed-{seed}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the callbacks that every run needs."""
        self.stopwatch = Stopwatch()
        self.evaluation = Evaluation(self.run_dir)
        progress = Progress(self.run_dir)
        prepare = Preparation(self.datamodule, self.stopwatch, progress.features)
        own = [self.stopwatch, prepare, self.evaluation, progress]
        if self.subcommand == "fit":
            best = Best(self.run_dir / runs.CHECKPOINTS, self.datamodule.monitor)
            own += [Finite(), RandomState(), best, Resumable(self.run_dir / runs.LAST)]
        given = self.config_init[self.subcommand].trainer.callbacks or []
        given = given if isinstance(given, list) else [given]
        try:
            return super().instantiate_trainer(callbacks=[*given, *own], **kwargs)
        except (MisconfigurationException, ImportError, TypeError, ValueError) as error:
            raise checks.trainer_fault(error, self.config[self.subcommand].trainer) from error

    def after_instantiate_classes(self) -> None:
        """Check all that can be checked before anything slow starts, and make the folder."""
        self.check_data()
        self.check_decoder()
        self.new_folders = [own for own in (self.run_dir, *self.run_dir.parents) if not own.exists()]
        runs.make_folder(self.run_dir, "`run_dir`")
        hush(self.trainer.loggers)

    def check_data(self) -> None:
        """Read the data and check it against the strategy."""
        stage = self.subcommand
        if stage in ("fit", "validate"):
            checks.check_selection(self.model, self.datamodule, self.trainer)
        self.datamodule.setup(stage)
        if stage == "fit":
            self.datamodule.setup("test")
        if stage == "fit":
            if isinstance(self.model, Trainable):
                checks.check_training(self.model, self.datamodule, self.trainer)
        else:
            best = Path(self.config[stage].run_dir) / runs.BEST
            given = self.config_init[stage]
            given.ckpt_path = checkpoints.learned(type(self.model), given.get("ckpt_path"), best)

    def check_decoder(self) -> None:
        """Find the decoder and read its configuration; check the strategy, and what it would be loaded from, against it."""
        if self.model.backbone is not None:
            assert self.model.backbone.files.config is not None
        self.model.check_decoder()
        if (checkpoint := self.config_init[self.subcommand].get("ckpt_path")) is not None:
            checkpoints.check_checkpoint(checkpoint, self.model, self.subcommand == "fit")

    def fit(self, model: EmbeddingStrategy, datamodule: DataModule, **arguments: Any) -> None:
        """Run the stages, train, test the best checkpoint, write the result; files are written by the first process."""
        config, first = self.config.fit, self.trainer.is_global_zero
        resolved = self.plain(self.config)
        identity = identify(resolved, model, datamodule, self.trainer)
        with ExitStack() as held:
            if first:
                held.callback(claim(self.run_dir, identity.run, identity.code, identity.versions).release)
                if not goes_to_log(self.run_dir):  # `compare` keeps the log of what it starts
                    held.enter_context(keep_log(self.run_dir))
            try:
                if first:
                    write_text_atomic(self.run_dir / runs.CONFIG, yaml.safe_dump(resolved, sort_keys=False))
                    tell_configuration(self.trainer.loggers, resolved)
                self._train_and_test(model, datamodule, **arguments)
                tokens = self.stopwatch.tokens
                if first:
                    notes = result.notes(config, model, datamodule, self.evaluation)
                    measured = result.Measured(self.evaluation, self.stopwatch, tokens, self.trainer.world_size)
                    result.finish(self.run_dir, config, identity, model, datamodule, measured, notes)
            except BaseException as error:
                interrupted = isinstance(error.__context__, KeyboardInterrupt)
                if isinstance(error, SystemExit) and interrupted:  # what Lightning makes of Ctrl-C
                    error = KeyboardInterrupt()
                if first:
                    reason = f"{type(error).__name__}: {error}".strip(": ").splitlines()[0]
                    stopped = isinstance(error, KeyboardInterrupt)
                    runs.mark(self.run_dir, "interrupted" if stopped else "failed", None if stopped else reason)
                raise error
            if first:
                print(result.told(self.evaluation))  # noqa: T201  # the command's answer
                print(f"run folder: {self.run_dir}")  # noqa: T201

    def _train_and_test(self, model: EmbeddingStrategy, datamodule: DataModule, **arguments: Any) -> None:
        """Train where there is something to train, and test what did best on validation."""
        config, best, last = self.config.fit, self.run_dir / runs.BEST, self.run_dir / runs.LAST
        if not isinstance(model, Trainable):
            self.trainer.validate(model, datamodule=datamodule, verbose=False)
            self.trainer.save_checkpoint(best, weights_only=True)
            self.trainer.test(model, datamodule=datamodule, verbose=False)
            return
        where = (self.run_dir, datamodule, self.stopwatch, self.trainer.world_size)
        for stage in model.stages():
            self.evaluation.stages[stage.name] = train_stage(stage, model, config, *where)
        model.set_stage(None)
        seed_everything(config.seed_everything, verbose=False)  # whether or not stages ran just now
        if last.exists():
            if arguments.get("ckpt_path") is not None:
                log.info("goes on from %s, not from `ckpt_path`, where it began", last)
            arguments["ckpt_path"] = str(last)
        self.trainer.fit(model, datamodule=datamodule, **arguments)
        if not best.exists():
            raise RuntimeError("training ended without a single validation; lower `check_val_every_n_epoch`")
        self.trainer.test(model, datamodule=datamodule, ckpt_path=str(best), weights_only=True, verbose=False)

    def after_validate(self) -> None:
        """Say where the predictions are, or what was found."""
        if self.datamodule.collection is None:
            self._tell_where("validation")
        elif self.trainer.is_global_zero:
            print(result.told(self.evaluation))  # noqa: T201  # the command's answer

    def after_test(self) -> None:
        """Say where the predictions are."""
        self._tell_where(*(f"test/{name}" for name in self.datamodule.test_names))

    def after_predict(self) -> None:
        """Say where the predictions are."""
        self._tell_where("predict")

    def _tell_where(self, *names: str) -> None:
        for name in names if self.trainer.is_global_zero else ():
            print(f"predictions: {runs.predictions_file(self.run_dir, name)}")  # noqa: T201  # the command's answer


def _raise_typed(error: ValueError, options: Collection[str], new_folders: Sequence[Path]) -> None:
    """Take new folders back, and raise what is for users with the strategy's options named as they are typed, if it has any."""
    if (said := meant_for_users(error)) is None:
        return
    with suppress(OSError):  # one that is not empty stays
        for folder in new_folders:
            folder.rmdir()
    if (sentence := as_typed(str(said), options)) != str(error):
        raise UserError(sentence) from None


def _settle(trainer: Any) -> None:
    """Fill in options of the trainer that follow from the rest."""
    trainer.num_sanity_val_steps = 0
    trainer.use_distributed_sampler = False  # the data module shares rows out itself, without repeats
    epochs, every = trainer.max_epochs, trainer.check_val_every_n_epoch
    if epochs is not None and every is not None and 0 < epochs < every:
        trainer.check_val_every_n_epoch = epochs  # or nothing would ever be validated
    if trainer.enable_progress_bar is None:
        trainer.enable_progress_bar = sys.stdout.isatty()


def main(arguments: Sequence[str]) -> int:
    """Run one of the four subcommands.

    Args:
        arguments: The subcommand and its options.

    Returns:
        Exit status 0.

    Raises:
        UserError: If something asked for cannot be done.
    """
    prepare()
    if shown := help.answer(arguments):
        print(shown)  # noqa: T201  # the command's answer
        return 0
    run(lambda: RunCLI(arguments))
    return 0
