"""What a paper fixes is the default, and whatever differs is told; for every strategy found by walking the package."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from embedlab import losses, pooling
from embedlab.backbone import Backbone
from embedlab.backbone.tuning import Full, Tuning
from embedlab.strategies.base import EmbeddingStrategy, Trainable
from embedlab.strategies.freeze_encoders import LayerwiseMLP
from embedlab.strategies.published import differences, published
from tests.strategies.test_contract import found

FIXED = [(kind, name) for kind in found() for name in kind.paper]


def members(annotation: Any) -> list[Any]:
    """Return the types of a union, or the one there is."""
    own = typing.get_origin(annotation)
    return list(typing.get_args(annotation)) if own in (typing.Union, types.UnionType) else [annotation]


def filled(annotation: Any) -> Any:
    """Build a value of a type: strings are "x", numbers 3, dataclasses get what they need."""
    if any(typing.get_origin(own) is Sequence for own in members(annotation)):
        return [1]
    kind = next(own for own in members(annotation) if own in (str, int) or dataclasses.is_dataclass(own))
    if kind in (str, int):
        return "x" if kind is str else 3
    hints = typing.get_type_hints(kind)
    needed = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    return kind(**{name: filled(hints[name]) for name in needed})


def other(value: Any, annotation: Any) -> Any:
    """Return another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value / 2 + 0.125
    if Tuning in members(annotation):
        return Full()
    if isinstance(value, str):
        named = [own for own in members(annotation) if typing.get_origin(own) is typing.Literal]
        if int in members(annotation):
            return 1
        return next(own for own in typing.get_args(named[0]) if own != value) if named else "another {}"
    if isinstance(value, list | tuple):
        return [*value, 7]
    if value is None:
        return 1 if int in members(annotation) else 0.5
    if isinstance(value, type):
        return next(own for own in (nn.ReLU, LayerwiseMLP) if issubclass(own, typing.get_args(annotation)[0]))
    assert callable(value), f"cannot make another {value!r}"
    return next(own for own in (pooling.last_content, losses.mse) if own is not value)


def altered(annotation: Any, value: Any, path: list[str]) -> Any:
    """Return a value that differs at the end of a path of fields, and nowhere else."""
    if not path:
        return other(value, annotation)
    value = filled(annotation) if value is None else value
    hint = typing.get_type_hints(type(value))[path[0]]
    return dataclasses.replace(value, **{path[0]: altered(hint, getattr(value, path[0]), path[1:])})


def leaves(name: str, value: Any) -> list[str]:
    """Return the dotted names of what is compared: the argument, or every field of a dataclass."""
    if not dataclasses.is_dataclass(value):
        return [name]
    return [own for f in dataclasses.fields(value) for own in leaves(f"{name}.{f.name}", getattr(value, f.name))]


EVERY = [(kind, own) for kind, name in FIXED for own in leaves(name, kind.paper[name].value)]


@pytest.mark.parametrize(("kind", "name"), EVERY, ids=lambda own: getattr(own, "__name__", own))
def test_an_argument_that_is_not_as_published_is_noted(
    kind: type[EmbeddingStrategy], name: str, decoder_folder: Callable[[str], Path]
) -> None:
    backbone = Backbone(str(decoder_folder("llama")), dtype="float32")
    parameters = inspect.signature(kind).parameters
    first, *path = name.split(".")
    hint = typing.get_type_hints(kind.__init__)[first]
    default = parameters[first].default
    if not path and default is None:  # left out
        arguments = {first: filled(hint)} if Tuning not in members(hint) else {first: None}
        changed = {first: None} if Tuning not in members(hint) else {first: Full()}
    else:
        start = altered_parent(hint, default, path)
        arguments, changed = {first: start}, {first: altered(hint, start, path)}
    if Tuning in members(hint):
        changed["training"] = dataclasses.replace(parameters["training"].default, learning_rate=1e-5)
    before, after = (told(kind(backbone, **own), name) for own in (arguments, changed))
    assert before != after, "the note follows the argument; without one it is as published"
    assert len(before) <= 1
    assert len(after) <= 1


def altered_parent(hint: Any, default: Any, path: list[str]) -> Any:
    """Return the default an argument is altered from; what is left out by default is filled in first."""
    return filled(hint) if path and default is None else default


def told(strategy: EmbeddingStrategy, name: str) -> list[str]:
    return [note for note in strategy.notes if note.startswith(f"differs from the paper: {name} ")]


@pytest.mark.parametrize("kind", found(), ids=lambda kind: kind.__name__)
def test_what_always_differs_is_noted_too(kind: type[EmbeddingStrategy], decoder_folder: Callable[[str], Path]) -> None:
    if "model" in inspect.signature(kind).parameters:
        assert not kind.departures, "a trained model as it is"
        return
    needs = "backbone" in inspect.signature(kind).parameters
    strategy = kind(Backbone(str(decoder_folder("llama")))) if needs else kind()
    assert {f"differs from the paper: {what}" for what in kind.departures} <= set(strategy.notes)
    assert kind.paper or kind.departures or not issubclass(kind, Trainable)


def test_a_clause_for_each_difference() -> None:
    training = inspect.signature(next(k for k in found() if issubclass(k, Trainable))).parameters["training"].default
    paper = published("section 1", training=training, loss=losses.mse, widths=(1, 2), depth=None, wide=False)
    same = {"training": training, "loss": losses.mse, "widths": [1, 2], "depth": None, "wide": False}
    assert differences(paper, same) == []
    faster = dataclasses.replace(training, warmup=0.75)
    assert differences(paper, {"training": faster, "loss": losses.cosent, "widths": [1], "depth": 3, "wide": True}) == [
        f"training.warmup 0.75 instead of {training.warmup:g} (section 1)",
        "loss cosent instead of mse (section 1)",
        "widths [1] instead of [1, 2] (section 1)",
        "depth 3 instead of null (section 1)",
        "wide true instead of false (section 1)",
    ]
    inner = published("section 1", training__warmup=0.1)
    assert differences(inner, {"training": None}) == [], "of what is left out nothing differs"
