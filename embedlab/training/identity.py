"""What makes two runs the same run: the identity that `compare`, `fit`, a resume and the report share.

What decides it:

- the configuration as resolved by the parser, without places, names, and the trainer options that only show; devices
  and precision as the trainer has them;
- the content of the data, those of earlier stages included, and of each file that an option of a strategy or a callback
  names, or `ckpt_path`; not how their paths are written. Of a folder, only the path counts. What an option has is a path
  if a folder or a suffix stands in it;
- the files of the decoder, or of the model of another library; of a hub id, its commit too;
- the precision that the decoder computes in, `auto` resolved;
- the source of the classes and functions that the configuration names, with what they import of the user's own modules,
  of the strategies and of poolings, losses and tuning, see `embedlab.source_hash`. A strategy of embedlab so counts with
  the modules beside it that it imports, such as `freeze_network`, but not with another strategy.

What is recorded beside it, as `code`, is the rest that decides numbers, shared by all runs: what all strategies share
(`FRAME` of `embedlab.source_imports`), backbone, data, packing, training. Changing it voids no run; tables tell. So it
is with versions of packages, that of embedlab included.
"""

from __future__ import annotations

import inspect
import platform
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import lightning
import peft
import torch
import transformers
from lightning.pytorch import Trainer

import embedlab
from embedlab.backbone import Backbone
from embedlab.backbone.pretrained import Pretrained, best_dtype
from embedlab.data import DataModule, Source
from embedlab.resources import file_sha256
from embedlab.runs.code import shared_code
from embedlab.runs.identity import SHOWN, content_hash
from embedlab.source_hash import sources_of
from embedlab.strategies.base import EmbeddingStrategy, Trainable
from embedlab.yaml_files import texts

__all__ = ["Identity", "identify"]

PLACES: Final = ("run_dir", "study", "label")
SOURCES: Final = ("train", "validation", "test", "predict")  # of the data; their content counts
# Options of the data as they were before there were such options: a run made then is the same one.
NEWER: Final = {"leak_filter": "none", "select_by": "spearman"}
BACKBONE: Final = set(inspect.signature(Backbone).parameters)
SOURCE: Final = {field.name for field in fields(Source)}
OPTIONS: Final = ("init_args", "dict_kwargs")  # where options of a class stand
UNWRITTEN: Final = "Unable to serialize instance"  # what jsonargparse writes for an object


@dataclass(frozen=True)
class Identity:
    """What decides a run, and what is recorded beside it.

    Attributes:
        run: Hash of all that decides the result, the seed included.
        settings: The same without the seed: equal for all runs of a row of the table.
        unselected: The same without validation rows and `data.select_by`, by which epochs are selected.
        code: Short hashes of every module that does not decide the result, by its name without `embedlab.`.
        versions: Of packages, by name.
    """

    run: str
    settings: str
    unselected: str
    code: Mapping[str, str]
    versions: Mapping[str, str]


def identify(config: Mapping[str, Any], strategy: EmbeddingStrategy, data: DataModule, trainer: Trainer) -> Identity:
    """Tell what a run is.

    Args:
        config: The resolved configuration of `fit`, plain data.
        strategy: Built from it; nothing need be loaded.
        data: Built from it and set up.
        trainer: Built from it.

    Raises:
        UserError: If the texts of an earlier stage cannot be read.
    """
    kept = {key: value for key, value in config.items() if key not in PLACES}
    kept["data"] = {key: value for key, value in config["data"].items() if key not in SOURCES}
    for name, default in NEWER.items():
        if kept["data"].get(name) == default:
            del kept["data"][name]
    kept["trainer"] = {key: value for key, value in config["trainer"].items() if key not in SHOWN}
    kept["trainer"] |= {"devices": trainer.num_devices, "precision": trainer.precision}
    if (clip := kept["trainer"].get("gradient_clip_val")) is not None:
        kept["trainer"]["gradient_clip_val"] = float(clip)
    sources = sources_of(texts(kept))
    backbone = strategy.backbone
    stages = strategy.stages() if isinstance(strategy, Trainable) else ()
    settle = _Settle([content_hash(asdict(stage.source)) for stage in stages])
    kept = {key: settle(value) for key, value in kept.items()}
    if (other := strategy.borrowed) is not None and Path(other.name).expanduser().is_dir():
        kept["model"]["init_args"][other.argument] = None  # by its content, however the path is written
    if isinstance(checkpoint := kept.get("ckpt_path"), str):
        kept["ckpt_path"] = _content(checkpoint)
    read = {  # of a retrieval set a rule too, which its content does not hold
        name: [*(own[key] for key in ("rows", "sha256", "query", "same_id_left_out") if key in own)]
        for name, own in data.fingerprint().items()
    }
    decided = {
        "config": kept,
        "data": read,
        "stages": {stage.name: [stage.read().sha256, stage.source.query] for stage in stages},
        "decoder": None if backbone is None else backbone.files.sha256,
        "sources": sources,
    }
    if strategy.borrowed is not None:
        decided["borrowed"] = strategy.borrowed.sha256
    without_seed = {**decided, "config": {**kept, "seed_everything": None}}
    rule = {**kept, "seed_everything": None, "data": {n: own for n, own in kept["data"].items() if n != "select_by"}}
    unselected = {**decided, "config": rule, "data": {name: own for name, own in read.items() if name != "validation"}}
    return Identity(
        content_hash(decided), content_hash(without_seed), content_hash(unselected), shared_code(), _versions()
    )


def _versions() -> dict[str, str]:
    packages = (embedlab, torch, lightning, transformers, peft)
    return {**{own.__name__: own.__version__ for own in packages}, "python": platform.python_version()}


@dataclass(frozen=True)
class _Settle:
    """Puts into a configuration, for what may be written in several ways, what it comes to.

    Attributes:
        read: Hashes of the sources whose content is known.
    """

    read: Collection[str]

    def __call__(self, value: Any, named: bool = False) -> Any:
        """Settle a value, in which strings may have `named` files."""
        if isinstance(value, Mapping):
            if set(value) == SOURCE and content_hash(value) in self.read:
                return None
            found = {key: self(own, named or key in OPTIONS) for key, own in value.items()}
            return {**found, **_decoder(value)} if set(value) == BACKBONE else found
        if isinstance(value, list):
            return [self(own, named) for own in value]
        if isinstance(value, str) and value.startswith(UNWRITTEN):
            # An address in memory, for a default without an import path such as a lambda. What that computes is known
            # all the same: it is written in a module that counts, as the class which has the default is named.
            return re.sub(r" at 0x[0-9a-fA-F]+", "", value)
        return _content(value) if named and isinstance(value, str) and _is_path(value) else value


def _decoder(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the precision of a decoder, `auto` resolved, and the hash of one that lies here instead of its path."""
    name, dtype = value["name"], value["dtype"]
    if Path(name).expanduser().exists():
        name = Pretrained(name, value["revision"]).sha256
    return {"name": name, "dtype": str(best_dtype()).removeprefix("torch.") if dtype == "auto" else dtype}


def _is_path(text: str) -> bool:
    """Tell whether a text is written as paths are, so that it is none by chance, such as a word of a prompt."""
    return "/" in text or bool(Path(text).suffix)


def _content(text: str) -> str | dict[str, str]:
    """Return the hash of the file of that name; the text where there is none."""
    try:
        path = Path(text).expanduser()
        return {"sha256": file_sha256(path)} if path.is_file() else text
    except (OSError, RuntimeError, ValueError):  # a text that no file can be named, or one that cannot be read
        return text
