"""Arguments of a strategy as plain values: a checkpoint holds them, and meets no strategy that computes something else."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import torch

from embedlab.backbone import Backbone
from embedlab.strategies.optimisation import Training

__all__ = ["arguments_of", "different", "plain"]

READING = (
    "begin_of_text",
    "max_length",
)  # arguments of a decoder that decide its states; its files are known by a hash


def arguments_of(init: Callable[..., None], given: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a constructor by name, defaults included, as plain values.

    Args:
        init: The constructor.
        given: What it was given by position, the object first.
        named: What it was given by name.
    """
    bound = inspect.signature(init).bind(*given, **named)
    bound.apply_defaults()
    return {name: plain(value) for name, value in list(bound.arguments.items())[1:]}


def plain(value: Any) -> Any:
    """Return a value as one of YAML's: a function or an object by its path, a dataclass with its fields.

    What decides only how something is learned, or in which precision a decoder computes, is left out.

    >>> plain((1, plain)), plain(Training())
    ([1, 'embedlab.strategies.arguments.plain'], None)
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Training):
        return None
    if isinstance(value, Backbone):
        return {name: getattr(value, name) for name in READING}
    if isinstance(value, Mapping):
        return {str(name): plain(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [plain(own) for own in value]
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, torch.dtype | Path):
        return str(value)
    if isinstance(value, partial):
        return [plain(value.func), plain(value.args), plain(value.keywords)]
    own = value if hasattr(value, "__qualname__") else type(value)
    path = f"{own.__module__}.{own.__qualname__}"
    if is_dataclass(value) and not isinstance(value, type):
        return {
            "class": path,
            **{field.name: plain(getattr(value, field.name)) for field in fields(value) if field.init},
        }
    return path


def different(
    kept: Mapping[str, Any], own: Mapping[str, Any], free: Collection[str], above: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield the arguments of which two strategies have other values: dotted name, the one's value, the other's.

    Args:
        kept: Those of the one; what it lacks is not compared.
        own: Those of the other.
        free: Dotted names of those that may differ.
        above: What stands before each name.

    >>> list(different({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 0, "b": {"c": 4, "d": 5}, "e": 6}, ["a", "b.d"]))
    [('b.c', 2, 4)]
    """
    for name in own:
        option = f"{above}{name}"
        if name not in kept or option in free or kept[name] == own[name]:
            continue
        if isinstance(kept[name], Mapping) and isinstance(own[name], Mapping):
            yield from different(kept[name], own[name], free, f"{option}.")
        else:
            yield option, kept[name], own[name]
