"""What is checked before a run starts anything slow."""

from __future__ import annotations

import re
import unicodedata
import zipfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, cast

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator, XLAAccelerator
from lightning.pytorch.callbacks import GradientAccumulationScheduler, Timer
from lightning.pytorch.strategies import StrategyRegistry

from embedlab import runs
from embedlab.data import DataModule, Pairs
from embedlab.errors import UserError, did_you_mean
from embedlab.retrieval.measures import MEASURES
from embedlab.strategies.base import Batch, Embedder, EmbeddingStrategy, Trainable
from embedlab.training.checkpoints import check_goes_on
from embedlab.training.values import check_groups

__all__ = ["check_request", "check_selection", "check_training", "class_of", "trainer_fault"]

# What Lightning takes below this, and then divides by or ignores.
LEAST: Final = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 0,
    "gradient_clip_val": 0,
}

# Others would convert a decoder that is loaded in a type of its own, or clip gradients while they are scaled.
NUMBERS: Final = {f"val/{own}" for own in ("pearson", "spearman", *MEASURES)}  # that a validation may log
PRECISIONS: Final = ("32-true", "32", "bf16-mixed", "bf16")


def check_request(subcommand: str, config: Any) -> None:
    """Refuse what cannot be done, before anything slow starts.

    Args:
        subcommand: fit, validate, test or predict.
        config: Its configuration.

    Raises:
        UserError: If a seed, a name, a checkpoint or the machine is none, or a fit could keep nothing.
    """
    check_groups(config)
    seed = config.seed_everything
    if type(seed) is not int or not 0 <= seed < 2**32:
        came = str(seed).lower()
        raise UserError(
            f"`seed_everything` must be a whole number from 0 to 2^32 - 1, got {came}; give one, such as 0."
        )
    for argument in ("study", "label"):
        if config[argument] is not None:
            runs.check_name(config[argument], f"`{argument}`")
    _check_names_of_sets([str(name) for name in config.data.test or {}])
    if config.run_dir is not None:
        check = runs.check_run_folder if subcommand == "fit" else runs.check_folder
        check(Path(config.run_dir), "`run_dir`")
    _check_machine(config.trainer)
    path = config.get("ckpt_path")
    if path is not None and not zipfile.is_zipfile(path):
        what = (
            "a file that is no checkpoint"
            if Path(path).is_file()
            else "a folder"
            if Path(path).is_dir()
            else "no such file"
        )
        wanted = f"{path if Path(path).is_dir() else 'RUN'}/{runs.LAST if subcommand == 'fit' else runs.BEST}"
        raise UserError(f"`ckpt_path` must name a checkpoint, such as {wanted}, but {path} is {what}; name one.")
    if path is not None and subcommand == "fit" and not issubclass(class_of(config), Trainable):
        raise UserError(
            f"`ckpt_path` must be left out for {class_of(config).__name__}, which is not trained, got {path}; leave it out."
        )
    if path is not None and subcommand == "fit":
        check_goes_on(path, class_of(config), config.trainer.max_epochs)
    if subcommand == "test" and not config.data.test:
        raise UserError(
            "`data.test` must name a source of pairs to test on, got none; give --data.test '{NAME: {path: FILE}}'."
        )
    for name, bad in {"fast_dev_run": True, "barebones": True, "enable_checkpointing": False}.items():
        if subcommand == "fit" and config.trainer[name] is not None and bool(config.trainer[name]) == bad:
            raise UserError(
                f"`trainer.{name}` must be left out, as a run keeps its best epoch, got {config.trainer[name]}; for a "
                "quick try set `trainer.max_epochs` 1 and `data.train.limit`."
            )


def trainer_fault(error: Exception, trainer: Any) -> UserError:
    """Return the sentence for what Lightning refuses to build.

    Args:
        error: What it raised.
        trainer: The options of the trainer.
    """
    reason = " ".join(str(error).split()).rstrip(".!").replace(". ", "; ")
    places = {name: found.start() for name in vars(trainer) if (found := re.search(rf"\b{name}\b", reason))}
    if not places:
        return UserError(
            f"`trainer` must be one that Lightning can build, but {reason}; change or leave out that option."
        )
    name = min(places, key=lambda own: places[own])
    return UserError(
        f"`trainer.{name}` must be what Lightning can do here, got {trainer[name]}: {reason}; leave it out."
    )


def _check_names_of_sets(names: Sequence[str]) -> None:
    """Refuse names under which predictions cannot be kept, or not apart."""
    files: dict[str, str] = {}
    for name in names:
        runs.check_name(name.replace("/", "-"), "each name in `data.test`")
        # Some file systems know neither case nor how an accent is composed.
        file = unicodedata.normalize("NFC", runs.predictions_file(Path(), name).name).casefold()
        if (other := files.setdefault(file, name)) is not name:
            raise UserError(
                "`data.test` must have names whose predictions are different files, which differ by more than case and / "
                f"for -, got {other} and {name}; rename one."
            )


def class_of(config: Any) -> type:
    """Return the strategy's class."""
    module, _, name = config.model.class_path.rpartition(".")
    found: type = getattr(import_module(module), name)
    return found


def _check_machine(trainer: Any) -> None:
    """Refuse what this machine lacks; what is left is Lightning's to judge."""
    there = {"auto": True, "cpu": True, "cuda": CUDAAccelerator.is_available(), "mps": MPSAccelerator.is_available()}
    there["gpu"] = there["cuda"] or there["mps"]
    there["tpu"] = bool(XLAAccelerator.is_available())
    name = trainer.accelerator
    if isinstance(name, str) and not there.get(name):
        here = ", ".join(own for own, is_there in there.items() if is_there)
        near = did_you_mean(name, there, listing=False) if name not in there else ""
        near = near or "; leave it out to take what there is"
        raise UserError(f"`trainer.accelerator` must be one that this machine has ({here}), got {name}{near}.")
    strategies = ["auto", *StrategyRegistry.available_strategies()]
    if isinstance(name := trainer.strategy, str) and name not in strategies:
        near = did_you_mean(name, strategies, listing=False) or f"; there are {', '.join(strategies)}"
        raise UserError(f"`trainer.strategy` must be a way to share work that Lightning knows, got {name!r}{near}.")
    _check_time(trainer.max_time)
    for name in ("limit_train_batches", "limit_val_batches", "val_check_interval"):
        if trainer[name] is not None and trainer[name] == 0:
            raise UserError(
                f"`trainer.{name}` must be above 0, as a run trains and selects its best epoch, got 0; leave it out."
            )
    for name, least in LEAST.items():
        if trainer[name] is not None and trainer[name] < least:
            raise UserError(
                f"`trainer.{name}` must be at least {least}, got {trainer[name]}; leave it out for the default."
            )
    if trainer.precision is not None and str(trainer.precision) not in PRECISIONS:
        raise UserError(
            f"`trainer.precision` must be 32-true or bf16-mixed, got {trainer.precision}; what the decoder computes in is "
            "`model.backbone.dtype`."
        )
    devices = trainer.devices
    on_cpu = trainer.accelerator == "cpu" or not (there["gpu"] or there["tpu"])
    number = re.fullmatch(r" *(-?\d+) *", str(devices))
    if (devices != "auto" and ((on_cpu and number is None) or (number and int(number[1]) < (1 if on_cpu else -1)))) or (
        number is not None and int(number[1]) == 0
    ):
        what = "a whole number of at least 1" if on_cpu else "a whole number of at least 1, or a list of devices"
        raise UserError(f"`trainer.devices` must be {what}, got {devices}; leave it out to take what there is.")


def _check_time(given: Any) -> None:
    """Refuse what is no time, or none left."""
    try:
        left = Timer(given).time_remaining()
    except (MisconfigurationException, TypeError, ValueError, OverflowError):
        left = 0.0
    if left is not None and left <= 0:
        raise UserError(
            f"`trainer.max_time` must be a time above 0 as days, hours, minutes and seconds, such as 00:12:00:00, got {given}; "
            "write it so, or leave it out."
        )


def check_selection(strategy: EmbeddingStrategy, data: DataModule, trainer: Trainer) -> None:
    """Refuse what validation cannot go by, before anything is read.

    Raises:
        UserError: If a retrieval set would be searched without vectors, or in part, or a callback goes by a number that is
            not logged.
    """
    for own in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = str(getattr(own, "monitor", None))
        if monitor in NUMBERS and monitor not in data.validated:
            raise UserError(
                f"`trainer.callbacks` must go by what `data.validation` gives, {' or '.join(data.validated)}, but "
                f"{type(own).__name__} has the `monitor` {monitor}; set it to {data.monitor}."
            )
    if not data.searches:
        return
    assert data.validation is not None
    if not isinstance(strategy, Embedder):
        raise UserError(
            f"`data.validation` must be scored pairs for {type(strategy).__name__}, which has no vectors to search with, got the "
            f"retrieval set {data.validation.path}; name a table of pairs."
        )
    if trainer.limit_val_batches != 1.0:  # `overfit_batches` sets it too
        raise UserError(
            f"`trainer.limit_val_batches` must be left out where a retrieval set is searched, which needs all of its texts, got "
            f"{trainer.limit_val_batches}; set `data.validation.limit` lower for fewer queries."
        )


def check_training(strategy: Trainable, data: DataModule, trainer: Trainer) -> None:
    """Refuse a training in which no epoch could be selected, or data that the strategy does not learn from.

    Raises:
        UserError: If so.
    """
    if data.validation is None:
        raise UserError(
            "`data.validation` must name scored pairs or a retrieval set, as the best epoch on them is what is kept, got none; "
            "set it."
        )
    if trainer.max_epochs == 0:
        raise UserError("`trainer.max_epochs` must be at least 1, as the best epoch is what is kept, got 0; raise it.")
    if (trainer.max_epochs or -1) < 0 and trainer.max_steps < 0:
        raise UserError(
            f"`trainer.max_epochs` must say where training ends, at least 1, got {trainer.max_epochs}; set it, or "
            "`trainer.max_steps`."
        )
    loader = data.train_dataloader()
    _check_steps(trainer, len(loader))
    batch = next(iter(loader))
    if not isinstance(batch, strategy.learns_from):
        kinds = " or ".join(kind.__name__.lower() for kind in strategy.learns_from)
        raise UserError(
            f"`data.train` must give {kinds} to {type(strategy).__name__}, got {type(batch).__name__.lower()}; "
            "name other columns or another source."
        )
    if loader.fewest < 2 and isinstance(batch, Pairs) and strategy.compares_rows(batch):
        raise UserError(
            f"`data.batch_size` must give every batch 2 pairs at least for {type(strategy).__name__} here, whose loss compares "
            f"them, got {data.batch_size}, which makes a batch of 1; raise it, give more rows, or leave `data.drop_last` true."
        )
    schedules = [own.scheduling.values() for own in trainer.callbacks if isinstance(own, GradientAccumulationScheduler)]  # type: ignore[attr-defined]
    batches = max([trainer.accumulate_grad_batches, *(number for own in schedules for number in own)])
    if batches > 1 and strategy.compares_rows(cast(Batch, batch)):
        memory = ", and `model.chunk_size` to keep the memory" if hasattr(strategy, "chunk_size") else ""
        raise UserError(
            f"`trainer.accumulate_grad_batches` must be 1 for {type(strategy).__name__} here, whose loss compares the rows of a "
            f"batch, and not those of accumulated ones, got {batches}; set `data.batch_size` {batches * data.batch_size} "
            f"instead{memory}."
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
