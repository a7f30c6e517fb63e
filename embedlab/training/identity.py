"""What makes two runs the same run: the identity that `compare`, `fit`, a resume and the report share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import embedlab
from embedlab.data import DataModule
from embedlab.runs.identity import SHOWN
from embedlab.strategies.base import EmbeddingStrategy

__all__ = ["Identity", "identify"]

# What does not change a result: names and places.
PLACES: Final = ("run_dir", "study", "label")


@dataclass(frozen=True)
class Identity:
    """What decides a run, and what is recorded beside it.

    Attributes:
        run: Hash of all that decides the result, the seed included.
        settings: The same without the seed: equal for all runs of a row of the table.
        code: Hash of every module that does not decide the result, by its name.
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
    """
    run, settings = (_decided(config, strategy, data, seed) for seed in (True, False))
    return Identity(run, settings, {})


def _decided(config: Mapping[str, Any], strategy: EmbeddingStrategy, data: DataModule, seed: bool) -> str:
    kept = {key: value for key, value in config.items() if key not in PLACES and (seed or key != "seed_everything")}
    kept["trainer"] = {key: value for key, value in config["trainer"].items() if key not in SHOWN}
    decoder = None if strategy.backbone is None else strategy.backbone.files.sha256
    content = json.dumps([kept, data.fingerprint(), decoder, embedlab.__version__], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()
