"""What of a strategy is kept in a checkpoint: what it learned, and of which decoders; never their frozen weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from embedlab.backbone import Backbone
from embedlab.errors import UserError

__all__ = ["check", "decoders", "trim"]


def decoders(strategy: nn.Module) -> dict[str, Backbone]:
    """Return the decoders of a strategy by the name of the attribute, nested ones with their path."""
    return {name: own for name, own in strategy.named_modules() if isinstance(own, Backbone)}


def trim(strategy: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Drop frozen weights of decoders from a checkpoint; add the strategy's name and the decoders' hashes."""
    inside = tuple(f"{name}." for name in decoders(strategy))
    frozen = {n for n, p in strategy.named_parameters() if n.startswith(inside) and not p.requires_grad}
    buffers = {n for n, _ in strategy.named_buffers() if n.startswith(inside)}
    weights = checkpoint["state_dict"]
    checkpoint["state_dict"] = {n: v for n, v in weights.items() if n not in frozen | buffers}
    checkpoint["strategy"] = type(strategy).__qualname__
    checkpoint["decoders"] = {name: own.files.sha256 for name, own in decoders(strategy).items()}


def check(strategy: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Refuse a checkpoint of another strategy or other decoders, or one that lacks a learned tensor.

    Raises:
        UserError: If it is.
    """
    name = type(strategy).__qualname__
    if (came := checkpoint.get("strategy")) != name:
        raise UserError(
            f"`ckpt_path` must hold a checkpoint of {name}, got one of {came or 'another program'}; name the class it was "
            "trained with."
        )
    own, theirs = decoders(strategy), checkpoint.get("decoders", {"backbone": checkpoint.get("backbone")})
    for attribute in sorted({*own, *theirs}):
        wanted = own[attribute].files.sha256 if attribute in own else None
        if wanted != theirs.get(attribute):
            model = own[attribute].name if attribute in own else "no decoder"
            raise UserError(
                f"`ckpt_path` must hold a checkpoint for {model}, got one of another decoder (hash "
                f"{str(theirs.get(attribute))[:12]} instead of {str(wanted)[:12]}); set `{attribute}.name` to that one."
            )
    inside = tuple(f"{attribute}." for attribute in own)
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
