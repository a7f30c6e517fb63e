"""What makes two runs the same run: hashes of everything that defines one."""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import embedlab
from embedlab.yaml_files import read_yaml

__all__ = ["SHOWN", "content_hash", "request_hash"]

# Options of the trainer that decide how a run is shown, not what comes out.
SHOWN: Final = ("default_root_dir", "logger", "enable_progress_bar", "enable_model_summary", "log_every_n_steps")


def content_hash(content: Any) -> str:
    """Return a hash of plain data that does not depend on the order of keys.

    >>> content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def request_hash(configs: Sequence[Path], overrides: Mapping[str, Any], seed: int, code: Sequence[Path] = ()) -> str:
    """Return the hash of what defines a run; what is finished under the same hash is not run again.

    Args:
        configs: The YAML files, in the order they are laid over each other. Comments do not count.
        overrides: Dotted option to value.
        seed: The seed.
        code: Source files of the user's own strategy. Comments and layout do not count.

    Returns:
        A hash over all of these, over the content of every local data file and decoder they name, and over the
        version. How a run is shown does not count.
    """
    documents = [_without_looks(read_yaml(path)) for path in configs]
    overrides = {key: value for key, value in overrides.items() if not _is_looks(key)}
    files = {path for document in [*documents, _nested(overrides)] for path in _files(document)}
    return content_hash(
        {
            "version": embedlab.__version__,
            "configs": documents,
            "overrides": dict(overrides),
            "seed": seed,
            "files": {path: _file_hash(path, *_stamp(path)) for path in files},
            "code": [ast.dump(ast.parse(path.read_bytes())) for path in code],
        }
    )


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted options into the mapping that a YAML file would hold."""
    tree: dict[str, Any] = {}
    for option, value in overrides.items():
        *parents, last = option.split(".")
        place = tree
        for name in parents:
            if not isinstance(place.get(name), dict):
                place[name] = {}
            place = place[name]
        place[last] = value
    return tree


def _is_looks(option: str) -> bool:
    section, _, rest = option.partition(".")
    return section == "trainer" and rest.partition(".")[0] in SHOWN


def _without_looks(content: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of a configuration what only decides how a run is shown."""
    trainer = content.get("trainer")
    if not isinstance(trainer, Mapping):
        return dict(content)
    return {**content, "trainer": {key: value for key, value in trainer.items() if key not in SHOWN}}


def _files(content: Any, section: str = "") -> Iterator[str]:
    """Give every local file that stands for data or for a decoder: `path` of a source, `name` of a backbone."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            if isinstance(value, str) and (section, key) in (("data", "path"), ("backbone", "name")):
                path = Path(value)
                found = sorted(path.glob("*")) if section == "backbone" and path.is_dir() else [path]
                yield from (str(own) for own in found if own.is_file())
            inside = {"pretraining": "data", "data": "data", "backbone": "backbone"}.get(key, section)
            yield from _files(value, inside)
    elif isinstance(content, list):
        for value in content:
            yield from _files(value, section)


def _stamp(path: str) -> tuple[int, int]:
    state = os.stat(path)
    return state.st_size, state.st_mtime_ns


@lru_cache(maxsize=256)
def _file_hash(path: str, size: int, changed: int) -> str:
    """Hash a file once, however many runs read it; size and time are there to notice that it changed."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
