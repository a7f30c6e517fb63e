"""Load a finished run, or an untrained strategy over a decoder.

A run folder may come from a stranger, so that nothing of it is executed: its configuration may name classes and functions of
embedlab and of `torch.nn` only, unless other modules are allowed by name, and its checkpoint is read as weights.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

import torch
from jsonargparse import ArgumentError, ArgumentParser

import embedlab
from embedlab import runs
from embedlab.errors import UserError, did_you_mean, refusals_told
from embedlab.resources import file_sha256
from embedlab.runs.identity import content_hash
from embedlab.source_hash import sources_of
from embedlab.strategies.base import EmbeddingStrategy, Trainable
from embedlab.training.complaints import complaint
from embedlab.training.help import subclasses
from embedlab.training.start import prepare, run
from embedlab.use.given import device_of, texts_of
from embedlab.use.model import Model
from embedlab.use.trusted import IMPORT_PATH, check_modules, import_paths
from embedlab.yaml_files import read_yaml

__all__ = ["class_of", "load"]

TRUSTED: Final = ("embedlab", "torch.nn")
log = logging.getLogger(__name__)


@refusals_told()
def load(
    what: str | Path | type[EmbeddingStrategy],
    *,
    backbone: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    allow: Sequence[str] = (),
    texts: Sequence[str] | None = None,
    **options: Any,
) -> Model:
    """Load a finished run, or an untrained strategy over a decoder.

    Args:
        what: The folder of a finished run, or a strategy: its class or the name of one.
        backbone: The decoder of a strategy; of a run, where its decoder lies now, if it was moved.
        device: Where it computes; None is a GPU where there is one.
        dtype: What the decoder computes in: auto, bfloat16 or float32; None is what the run says, or auto.
        allow: Modules of your own whose classes and functions a run may name; importing one runs its code.
        texts: Texts to take statistics of, for an untrained strategy that takes some.
        **options: Other arguments of the strategy, as a configuration would have them.

    Raises:
        UserError: If there is no such run or strategy, the run is not finished or names modules that are not allowed, its
            decoder is not there or is another one, or an argument is wrong.
    """
    prepare()
    allow = [allow] if isinstance(allow, str) else list(allow)
    learned, autocast = None, None
    if isinstance(what, str | Path) and _is_folder(what):
        if options or texts is not None:
            given = "texts" if texts is not None else sorted(options)[0]
            raise UserError(f"`{given}` must be left out for a run, whose folder says it; leave it out.")
        folder = Path(what).expanduser()
        model, precision = _model_of(folder)
        autocast = torch.bfloat16 if precision in ("bf16-mixed", "bf16") else None  # the same, and kept as typed
        check_modules(model, folder, (*TRUSTED, *allow))
        lies = model if backbone is not None else _where_it_lies(model, folder)
        try:
            strategy = _build(_with_backbone(lies, backbone, dtype))
            _place(strategy, device)
        except UserError as error:
            if "`backbone.name`" not in str(error):
                raise
            raise UserError(
                f"{str(error).rstrip('.')}, or give `backbone` (--backbone) where the decoder of {folder} lies now."
            ) from error
        learned = file_sha256(folder / runs.BEST)
        _restore(strategy, folder / runs.BEST)
    else:
        kind = what if inspect.isclass(what) else _class(str(what))
        texts = None if texts is None else texts_of(texts, "texts")
        least = 2 if "backbone" in inspect.signature(kind).parameters else 1  # one vector has no deviation
        if texts is not None and len({*texts}) < least:
            raise UserError(
                f"`texts` must hold at least {least} different to take statistics of, got {len({*texts})}; give more."
            )
        model = {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": dict(options)}
        strategy = _build(_with_backbone(model, backbone, dtype))
        _place(strategy, device)
        if texts is not None:
            strategy.prepare_once(lambda: texts)
        elif strategy.takes_statistics:
            raise UserError(
                f"`texts` must be given for {kind.__qualname__}, which takes statistics of texts; give some."
            )
        if isinstance(strategy, Trainable):
            log.warning("%s is not trained: load the folder of a run to use what one has learned", kind.__qualname__)
    if strategy.features is not None:
        strategy.features.kept = False
    decoder = None if strategy.backbone is None else [strategy.backbone.files.sha256, str(strategy.backbone.dtype)]
    if strategy.borrowed is not None:
        decoder = [strategy.borrowed.sha256]
    sources = sources_of(import_paths(model))  # of what a module of the user's own, or of ours, computes
    code = [sources, embedlab.__version__, str(autocast)]
    identity = content_hash([model, learned, decoder, texts, strategy.device.type, code])
    return Model(strategy.to(strategy.device), identity, autocast)


def class_of(what: str | Path, allow: Sequence[str] = ()) -> type[EmbeddingStrategy]:
    """Return the class of a finished run's strategy, or of a strategy by its name; nothing is built or loaded.

    Raises:
        UserError: If there is no such run or strategy, or the run names modules that are not allowed.
    """
    if not _is_folder(what):
        prepare()
        return _class(str(what))
    folder = Path(what).expanduser()
    model, _ = _model_of(folder)
    check_modules(model, folder, (*TRUSTED, *allow))
    return _class(model["class_path"])


def _is_folder(what: str | Path) -> bool:
    return isinstance(what, Path) or "/" in what or what.startswith((".", "~")) or Path(what).is_dir()


def _model_of(folder: Path) -> tuple[dict[str, Any], str | None]:
    """Return the strategy's part of a finished run's configuration, and the trainer's precision.

    Raises:
        UserError: If there is no such folder, or it is not that of a finished run.
    """
    must = "`what` must be the folder of a finished run, but"
    if folder.is_file():
        run = next((own for own in folder.parents if (own / runs.RESULT).is_file()), "the folder")
        raise UserError(f"{must} {folder} is a file; give {run}.")
    if not folder.is_dir():
        beside = [own.name for own in folder.parent.iterdir()] if folder.parent.is_dir() else []
        near = did_you_mean(folder.name, beside, listing=False) or "; `embedlab ls` lists those there are"
        raise UserError(f"{must} {folder} is not there{near}.")
    result = runs.read_result(folder)
    status = runs.read_status(folder) if result is None else None
    if result is None and status is None:
        inside = runs.find_runs(folder)
        way = f"name one of the runs in it, such as {inside[0]}" if inside else "`embedlab ls` lists those there are"
        raise UserError(f"{must} {folder} is none; {way}.")
    if result is None:
        state = (
            "running" if status is not None and runs.is_alive(status) else status.state if status is not None else ""
        )
        raise UserError(f"{must} that in {folder} is {state}; finish it with the command that began it.")
    for name in (runs.CONFIG, runs.BEST):
        if not (folder / name).is_file():
            raise UserError(f"{must} {folder} lacks {name}; copy the whole folder.")
    config = read_yaml(folder / runs.CONFIG)
    model, trainer = config.get("model"), config.get("trainer")
    if not (isinstance(model, dict) and isinstance(model.get("class_path"), str)):
        raise UserError(
            f"{folder / runs.CONFIG} must say which `model` was run, but it does not; copy the whole folder."
        )
    return model, trainer.get("precision") if isinstance(trainer, dict) else None


def _where_it_lies(model: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a run's configuration in which a decoder, or a model of another library, is named by the folder that it lay in.

    What was typed may be relative to where the run was made, which need not be here.

    Raises:
        UserError: If it lies there no longer, nor where the name leads from here.
    """
    result, arguments = runs.read_result(folder) or {}, dict(model.get("init_args") or {})
    for argument, way in (
        ("backbone", "give `backbone` (--backbone)"),
        ("model", f"mend {folder / runs.CONFIG}, to say"),
    ):
        lay, given = (result.get(argument) or {}).get("folder"), arguments.get(argument)
        if lay is None or given is None:
            continue
        name = given["name"] if isinstance(given, Mapping) else given
        if Path(lay).exists():
            name = lay
        elif not Path(name).expanduser().exists():
            raise UserError(
                f"`{argument}` of {folder} must lie in {lay}, but that is not there; {way} where it lies now."
            )
        arguments[argument] = {**given, "name": name} if isinstance(given, Mapping) else name
    return {**model, "init_args": arguments}


def _with_backbone(model: Mapping[str, Any], name: str | None, dtype: str | None) -> dict[str, Any]:
    """Return a strategy's configuration with another decoder or data type."""
    arguments = dict(model.get("init_args") or {})
    changed = {key: own for key, own in (("name", name), ("dtype", dtype)) if own is not None}
    kind = _class(model["class_path"]) if dtype is not None and name is None else None
    if changed and (kind is None or "backbone" in inspect.signature(kind).parameters):
        given = arguments.get("backbone") or {}
        arguments["backbone"] = {**({"name": given} if isinstance(given, str) else given), **changed}
    return {**model, "init_args": arguments}


def _class(name: str) -> type[EmbeddingStrategy]:
    """Find a strategy by the name of its class, with its module unless it ships.

    Raises:
        UserError: If there is none.
    """
    kinds: list[type[EmbeddingStrategy]] = list(dict.fromkeys(subclasses(EmbeddingStrategy)))
    if IMPORT_PATH.fullmatch(name):
        module, _, last = name.rpartition(".")
        try:
            kind = getattr(importlib.import_module(module), last, None)
        except ModuleNotFoundError:
            kind = None
        if inspect.isclass(kind) and issubclass(kind, EmbeddingStrategy):
            return kind
    found = [kind for kind in kinds if kind.__qualname__ == name]
    if len(found) == 1:
        return found[0]
    near = did_you_mean(name, [kind.__qualname__ for kind in kinds])
    raise UserError(f"`what` must be the folder of a run or the name of a strategy, got {name!r}{near}.")


def _build(model: Mapping[str, Any]) -> EmbeddingStrategy:
    """Build a strategy as a run would, by the same parser."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(EmbeddingStrategy, "model", required=True, fail_untyped=False)

    def built() -> EmbeddingStrategy:
        try:
            parsed = parser.parse_object({"model": dict(model)})
        except ArgumentError as error:
            raise UserError(complaint(str(error), parser, ["load"]).replace("model.", "")) from error
        strategy: EmbeddingStrategy = parser.instantiate_classes(parsed).model
        return strategy

    return run(built)


def _place(strategy: EmbeddingStrategy, device: str | torch.device | None) -> None:
    """Load the decoder onto a device, and build what learns.

    Raises:
        UserError: If there is no such device, or an argument does not fit the decoder.
    """
    strategy.check_decoder()
    strategy.to(device_of(device))
    strategy.configure_model()
    strategy.to(strategy.device)


def _restore(strategy: EmbeddingStrategy, path: Path) -> None:
    """Give a strategy what it has learned.

    Raises:
        UserError: If the checkpoint is damaged, holds more than weights, or belongs to something else.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, UnpicklingError) as error:
        raise UserError(
            f"{path} must hold weights and nothing else, but PyTorch does not read it so ({type(error).__name__}); copy the run "
            "folder again."
        ) from error
    try:
        strategy.on_load_checkpoint(checkpoint)
    except UserError as error:
        said = str(error).replace("`ckpt_path`", str(path))
        raise UserError(
            re.sub(r"set `\S+\.name` to that one", "give `backbone` the decoder of the run", said)
        ) from error
    strategy.load_state_dict(checkpoint["state_dict"], strict=False)  # what it lacks was found to be frozen
