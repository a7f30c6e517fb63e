"""What of a strategy is kept in a checkpoint: what it learned, and of which models; never their frozen weights."""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from embedlab.backbone import Backbone
from embedlab.errors import UserError
from embedlab.strategies.arguments import different, plain

__all__ = ["Borrowed", "check", "check_made", "check_strategy", "decoders", "trim"]


class Borrowed(ABC):
    """A frozen model of another library, which a strategy keeps as no module of its own.

    Attributes:
        argument: The strategy's argument that names it.
        name: What stands there.
        revision: Commit of a hub id.
    """

    argument: str
    name: str
    revision: str | None

    @property
    def local(self) -> Path | None:
        """Where it lies, seen from anywhere, if it is named by a folder; None for one of the hub."""
        path = Path(self.name).expanduser()
        return path.absolute() if path.is_dir() else None

    @property
    @abstractmethod
    def sha256(self) -> str:
        """Hash of all that decides its numbers."""

    @property
    @abstractmethod
    def num_parameters(self) -> int:
        """How many it has; asked for once it is loaded."""


def decoders(strategy: nn.Module) -> dict[str, Backbone]:
    """Return the decoders of a strategy by the name of the attribute, nested ones with their path."""
    return {name: own for name, own in strategy.named_modules() if isinstance(own, Backbone)}


def _models(strategy: nn.Module) -> dict[str, tuple[str, str, str]]:
    """Return what names each model that a strategy stands on, its name and its hash, by the attribute or argument."""
    found = {name: (f"{name}.name", own.name, own.files.sha256) for name, own in decoders(strategy).items()}
    other: Borrowed | None = getattr(strategy, "borrowed", None)
    return found if other is None else {**found, other.argument: (other.argument, other.name, other.sha256)}


def trim(strategy: Any, checkpoint: dict[str, Any]) -> None:
    """Drop frozen weights of decoders from a checkpoint; add the strategy's name and arguments, and the decoders' hashes."""
    inside = tuple(f"{name}." for name in decoders(strategy))
    frozen = {n for n, p in strategy.named_parameters() if n.startswith(inside) and not p.requires_grad}
    buffers = {n for n, _ in strategy.named_buffers() if n.startswith(inside)}
    weights = checkpoint["state_dict"]
    checkpoint["state_dict"] = {n: v for n, v in weights.items() if n not in frozen | buffers}
    checkpoint["strategy"] = type(strategy).__qualname__
    checkpoint["arguments"] = strategy.built_with
    if (plan := getattr(strategy, "plan", None)) is not None:
        checkpoint["training"] = asdict(plan)
    checkpoint["decoders"] = {name: sha256 for name, (_, _, sha256) in _models(strategy).items()}


def check_strategy(kind: type, checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another strategy than one of a class."""
    if (came := checkpoint.get("strategy")) != (name := kind.__qualname__):
        raise UserError(
            f"`ckpt_path` must hold a checkpoint of {name}, got one of {came or 'another program'}; name the class it was "
            "trained with."
        )


def check_made(strategy: Any, checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another strategy, of other decoders, or of arguments that would make other scores.

    Of a checkpoint that tells no arguments, as those of older versions, none are compared; of an argument that it does not
    know, the default is.

    Args:
        strategy: The strategy; nothing need be loaded.
        checkpoint: What it would be given.

    Raises:
        UserError: If it is.
    """
    check_strategy(type(strategy), checkpoint)
    own, theirs = _models(strategy), checkpoint.get("decoders", {"backbone": checkpoint.get("backbone")})
    for attribute in sorted({*own, *theirs}):
        option, model, wanted = own.get(attribute, (f"{attribute}.name", "no decoder", None))
        if wanted != theirs.get(attribute):
            kind = "decoder" if option != attribute else "model"
            raise UserError(
                f"`ckpt_path` must hold a checkpoint for {model}, got one of another {kind} (hash "
                f"{str(theirs.get(attribute))[:12]} instead of {str(wanted)[:12]}); set `{option}` to that one."
            )
    if (kept := checkpoint.get("arguments")) is None:
        return
    signature = inspect.signature(type(strategy).__init__).parameters
    kept = {name: plain(own.default) for name, own in signature.items()} | kept
    for option, made, came in different(kept, strategy.built_with, strategy.decides_no_score):
        raise UserError(
            f"`{option}` must be {_shown(made)} for `ckpt_path`, which was made with that, got {_shown(came)}; set it so, as in "
            "config.yaml of the run that made it, or train anew."
        )


def check(strategy: Any, checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that was not made for a strategy, see `check_made`, or one that lacks a learned tensor.

    Raises:
        UserError: If so.
    """
    check_made(strategy, checkpoint)
    inside = tuple(f"{attribute}." for attribute in decoders(strategy))
    learned = {n for n, p in strategy.named_parameters() if p.requires_grad or not n.startswith(inside)}
    found, shapes = checkpoint["state_dict"], {n: p.shape for n, p in strategy.named_parameters()}  # buffers may grow
    missing = learned - set(found)
    unknown = set(found) - set(strategy.state_dict()) | {
        n for n in shapes if n in found and found[n].shape != shapes[n]
    }
    if missing or unknown:
        raise UserError(
            f"`ckpt_path` must hold what this strategy learns, but {len(missing)} tensors are missing and {len(unknown)} "
            f"unknown or of another shape (first: {sorted(missing | unknown)[0]}); use the options it was trained with."
        )


def _shown(value: Any) -> str:
    """Return a plain value as it is typed."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
