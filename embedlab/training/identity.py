"""What makes two runs the same run: the identity that `compare`, `fit`, a resume and the report share.

What decides it:

- the configuration as resolved by the parser, without places, names, and the trainer options that only show;
- the content of the data, those of earlier stages included;
- the files of the decoder; the commit of a hub id is in the configuration;
- the precision that the decoder computes in, `auto` resolved;
- the source of the classes and functions that the configuration names, with what they import of the user's own project,
  of the strategies and of poolings, losses and tuning, see `embedlab.source_hash`. A strategy of embedlab so counts with
  the modules beside it that it imports, such as `freeze_network`, but not with another strategy.

What is recorded beside it, as `code`, is the rest that decides numbers, shared by all runs: `strategies/base.py`,
`optimisation.py` and `published.py`, backbone, data, packing, training. Changing it voids no run; tables tell. So it is
with versions of packages, that of embedlab included.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from embedlab.backbone import Backbone
from embedlab.data import DataModule
from embedlab.runs.code import shared_code
from embedlab.runs.identity import SHOWN, content_hash
from embedlab.source_hash import sources_of
from embedlab.strategies.base import EmbeddingStrategy, Trainable

__all__ = ["Identity", "identify"]

# What does not change a result: names and places.
PLACES: Final = ("run_dir", "study", "label")
BACKBONE: Final = set(inspect.signature(Backbone).parameters)
UNWRITTEN: Final = "Unable to serialize instance"  # what jsonargparse writes for an object


@dataclass(frozen=True)
class Identity:
    """What decides a run, and what is recorded beside it.

    Attributes:
        run: Hash of all that decides the result, the seed included.
        settings: The same without the seed: equal for all runs of a row of the table.
        code: Short hashes of every module that does not decide the result, by its name without `embedlab.`.
    """

    run: str
    settings: str
    code: Mapping[str, str]


def identify(config: Mapping[str, Any], strategy: EmbeddingStrategy, data: DataModule) -> Identity:
    """Tell what a run is.

    Args:
        config: The resolved configuration of `fit`, plain data.
        strategy: Built from it; nothing need be loaded.
        data: Built from it and set up.

    Raises:
        UserError: If the texts of an earlier stage cannot be read.
    """
    kept = {key: value for key, value in config.items() if key not in PLACES}
    kept["trainer"] = {key: value for key, value in config["trainer"].items() if key not in SHOWN}
    sources = sources_of(_strings(kept))
    backbone = strategy.backbone
    kept = _settled(kept, None if backbone is None else str(backbone.dtype).removeprefix("torch."))
    stages = strategy.stages() if isinstance(strategy, Trainable) else ()
    decided = {
        "config": kept,
        "data": data.fingerprint(),
        "stages": {stage.name: stage.source.read().sha256 for stage in stages},
        "decoder": None if backbone is None else backbone.files.sha256,
        "sources": sources,
    }
    without_seed = {**decided, "config": {**kept, "seed_everything": None}}
    return Identity(content_hash(decided), content_hash(without_seed), shared_code())


def _settled(value: Any, dtype: str | None) -> Any:
    """Put the resolved precision wherever a configuration describes the decoder, and take away addresses in memory.

    These stand in the text that the parser writes for a default it has no import path for, such as a lambda. What that
    computes is known all the same: it is written in a module that counts, as the class which has the default is named.
    """
    if isinstance(value, Mapping):
        found = {key: _settled(own, dtype) for key, own in value.items()}
        return {**found, "dtype": dtype} if set(value) == BACKBONE else found
    if isinstance(value, str) and value.startswith(UNWRITTEN):
        return re.sub(r" at 0x[0-9a-fA-F]+", "", value)
    return [_settled(own, dtype) for own in value] if isinstance(value, list) else value


def _strings(value: Any) -> Iterator[str]:
    """Give all values that may be import paths."""
    if isinstance(value, Mapping):
        for own in value.values():
            yield from _strings(own)
    elif isinstance(value, list | tuple):
        for own in value:
            yield from _strings(own)
    elif isinstance(value, str):
        yield value
