"""Training stages that come before the main one.

What a stage has learned is kept beside the cached features where the stage says what decides it (`Stage.decided_by`), so
that runs of a study that differ only in what comes after train it once. Each is charged what it took.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, final

import torch
from filelock import FileLock, Timeout
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger

from embedlab import runs
from embedlab.data import DataModule
from embedlab.errors import UserError
from embedlab.resources import cache_root
from embedlab.runs.identity import content_hash
from embedlab.source_hash import sources_of
from embedlab.strategies.base import Stage, Trainable
from embedlab.training.callbacks import Finite, Preparation, Progress, RandomState, Resumable, Stopwatch

__all__ = ["HELD_OUT", "TEXTS", "few_texts", "train_stage"]

_TRAINING: Final = 1  # raise when the same stage would learn other numbers
WEIGHTS: Final = "weights.ckpt"
DONE: Final = "done.json"
TEXTS: Final = "texts"  # in it, as the next
HELD_OUT: Final = "held_out"
VALIDATED: Final = "validated"
log = logging.getLogger(__name__)


def train_stage(
    stage: Stage,
    model: Trainable,
    config: Any,
    run_dir: Path,
    main_data: DataModule,
    main_stopwatch: Stopwatch,
    processes: int = 1,
) -> dict[str, Any]:
    """Train a stage that comes first, from where it was killed; load it if it was finished before, here or elsewhere.

    Args:
        stage: The stage.
        model: The strategy, which is set to it.
        config: Of the whole run.
        run_dir: The run folder.
        main_data: The run's own data, whose training texts give the statistics.
        main_stopwatch: The run's own, to which the stage's time is added.
        processes: How many the run has; those of several train every stage themselves.

    Returns:
        What its stopwatch says; under TEXTS the number of texts it learned from; under HELD_OUT how well it does on the
        validation texts, by what the stage calls it, which is not known where a run with others trained it.
    """
    folder = run_dir / runs.STAGES / stage.name
    model.set_stage(stage)
    # Whatever was drawn before: the same initial weights, whether the stage is trained or found.
    seed_everything(config.seed_everything, verbose=False)
    if (folder / DONE).exists():
        model.configure_model()
        checkpoint = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"], strict=False)
        counts: dict[str, Any] = json.loads((folder / DONE).read_text())
        main_stopwatch.add(counts)
        return counts
    with _kept(stage, model, config, main_data, processes) as kept:
        if kept is not None and (found := _find(kept, model, stage.trains)) is not None:
            log.info("stage %s was trained by another run: %s", stage.name, kept)
            main_stopwatch.add(found)
            return found if found.get(VALIDATED) == _validated(main_data) else {**found, HELD_OUT: {}}
        log.info("stage %s", stage.name)
        counts = _train(stage, model, config, folder, run_dir, main_data)
        main_stopwatch.add(counts)
        if kept is not None:
            _keep(kept, model, stage.trains, counts)
        return counts


def _train(
    stage: Stage, model: Trainable, config: Any, folder: Path, run_dir: Path, main_data: DataModule
) -> dict[str, Any]:
    """Train a stage from its start, or from where it was killed; return what its stopwatch says, and what it became."""
    last = folder / "last.ckpt"
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
    if (texts := len(data.train_texts())) < max(2, stage.batch_size):
        log.warning("note: %s", few_texts(stage, texts))
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
            *(_Reseed(config.seed_everything), Finite(), RandomState(), Resumable(last)),
        ],
        default_root_dir=str(folder),
        enable_checkpointing=False,
        use_distributed_sampler=False,
        enable_progress_bar=config.trainer.enable_progress_bar,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data, ckpt_path=str(last) if last.exists() else None)
    trainer.save_checkpoint(folder / WEIGHTS, weights_only=True)
    counts = {**stopwatch.state_dict(), TEXTS: texts, VALIDATED: _validated(main_data)}
    counts[HELD_OUT] = _on_held_out(stage, model, main_data)
    if trainer.is_global_zero:
        runs.write_json_atomic(folder / DONE, counts)
        last.unlink(missing_ok=True)
    return counts


def few_texts(stage: Stage, texts: int) -> str:
    """Return the note on a stage that learned from too few texts: from one, or from fewer than its batch."""
    what = "1 text" if texts == 1 else f"{texts} texts"
    fewer = f", fewer than its batch of {stage.batch_size}" if texts < stage.batch_size else ""
    return f"stage {stage.name} learned from {what} only{fewer}"


def _validated(main_data: DataModule) -> str | None:
    """Return the hash of a run's validation rows."""
    own: str | None = main_data.fingerprint().get("validation", {}).get("sha256")
    return own


@torch.no_grad()
def _on_held_out(stage: Stage, model: Trainable, main_data: DataModule) -> dict[str, float]:
    """Return how well a trained stage does on the validation texts, without dropout."""
    if main_data.validation is None or stage.held_out is None:
        return {}
    modes = [(own, own.training) for own in model.modules()]
    model.eval()
    told = dict(stage.held_out(main_data.eval_texts("validate")))
    for own, training in modes:
        own.training = training
    return told


@final
class _Reseed(Callback):
    """Draw the same random numbers in a stage, whatever was built for what comes after it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed before other callbacks part the processes, or restore what a checkpoint holds."""
        seed_everything(self.seed, verbose=False)


@contextmanager
def _kept(stage: Stage, model: Trainable, config: Any, main_data: DataModule, processes: int) -> Iterator[Path | None]:
    """Give the folder where runs that share a stage keep it, locked; None where it is not shared."""
    wish = config.trainer
    if stage.decided_by is None or model.backbone is None or processes > 1:
        yield None
        return
    kind, prints = type(model), main_data.fingerprint()
    decided = {
        "name": stage.name,
        "training": _TRAINING,
        "sources": sources_of([f"{kind.__module__}.{kind.__qualname__}", *_strings(stage.decided_by)]),
        "decoder": [model.backbone.files.sha256, str(model.backbone.dtype), model.backbone.window],
        "left_out": [
            main_data.leak_filter,
            *(
                prints[own]["sha256"]
                for own in ("validation", *(f"test/{own}" for own in main_data.test))
                if own in prints
            ),
        ]
        if main_data.leak_filter != "none"
        else [],
        "texts": [stage.read().sha256, prints["train"]["sha256"]],
        "settings": [stage.epochs, stage.batch_size, asdict(stage.training), stage.trains],
        "trainer": [str(wish.accelerator), str(wish.precision), wish.gradient_clip_val, wish.gradient_clip_algorithm],
        "seed": config.seed_everything,
        "strategy": dict(stage.decided_by),
        "torch": torch.__version__,
    }
    folder = cache_root() / "stages" / content_hash(decided)[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=1)
        except Timeout:
            log.info("another run is training stage %s; waiting for it", stage.name)
            lock.acquire()
    except OSError as error:
        log.warning("stage %s is not shared with other runs, as %s cannot be written: %s", stage.name, folder, error)
        yield None
        return
    try:
        yield folder
    finally:
        lock.release()


def _strings(values: Mapping[str, Any]) -> list[str]:
    """Return the values that may be import paths of a user's classes, whose code decides what is learned."""
    return [own for own in values.values() if isinstance(own, str)]


def _find(folder: Path, model: Trainable, part: str) -> dict[str, Any] | None:
    """Load what a stage has learned, and return what its stopwatch said; None where it is not kept, or damaged."""
    try:
        counts: dict[str, Any] = json.loads((folder / DONE).read_text())
        learned = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RuntimeError, EOFError) as error:
        log.warning("what %s holds of a stage is damaged, so it is trained again: %s", folder, error)
        return None
    model.configure_model()
    _without(model).get_submodule(part).load_state_dict(learned)
    # Whoever computed its features, this run finds all of them.
    return counts | {"charges": {phase: (total, total) for phase, (total, _) in counts["charges"].items()}}


def _keep(folder: Path, model: Trainable, part: str, counts: Mapping[str, Any]) -> None:
    """Keep what a stage has learned; where that fails, other runs train it themselves."""
    unfinished = folder / f"{uuid.uuid4().hex}.unfinished"
    try:
        torch.save(_without(model).get_submodule(part).state_dict(), unfinished)
        unfinished.replace(folder / WEIGHTS)
        runs.write_json_atomic(folder / DONE, counts)
    except (OSError, RuntimeError) as error:  # torch's word for a full disk
        log.warning("stage %s is not kept for other runs: %s", folder.name, error)
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _without(model: Trainable) -> Trainable:
    """Return a strategy as it is in the main stage, without what only the earlier one needs."""
    model.set_stage(None)
    model.configure_model()
    return model


def _named(strategy: Any) -> str:
    """Return Lightning's name of how processes work together; an object cannot serve two trainers."""
    if not isinstance(strategy, str):
        raise UserError(
            f"`trainer.strategy` must be a name such as ddp where a stage comes before training, got {strategy}; name one."
        )
    return strategy
