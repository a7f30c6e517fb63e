"""Options by which commands are told which model to use."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from embedlab.errors import UserError

__all__ = ["add_model_options", "check_embeds", "model_of"]


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add them to a parser."""
    parser.add_argument("--backbone", metavar="NAME", help="decoder of a strategy, or where that of a run lies now")
    parser.add_argument("--device", help="where it computes; a GPU where there is one")
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), help="what the decoder computes in")
    parser.add_argument(
        "--allow", metavar="MODULE", action="append", default=[], help="module of yours that a run names"
    )


def model_of(options: argparse.Namespace, what: str | None = None, backbone: str | None = None) -> Any:
    """Load the model that is meant.

    Args:
        options: What was typed.
        what: Run or strategy; None is `options.what` with its backbone.
        backbone: Of `what`.
    """
    from embedlab.use.loading import load  # after what can be wrong with files

    what, backbone = (options.what, options.backbone) if what is None else (what, backbone)
    with _said_as_typed():
        return load(what, backbone=backbone, device=options.device, dtype=options.dtype, allow=options.allow)


def check_embeds(options: argparse.Namespace, purpose: str, way: str) -> None:
    """Refuse a run or strategy without vectors, before its decoder is loaded.

    Args:
        options: What was typed.
        purpose: What vectors are needed for, such as "to rank a whole corpus".
        way: What can be done with one that scores pairs.

    Raises:
        UserError: If it has none, there is no such run, or it names modules that are not allowed.
    """
    from embedlab.strategies.base import Embedder
    from embedlab.use.loading import class_of

    with _said_as_typed():
        kind = class_of(options.what, options.allow)
    if not issubclass(kind, Embedder):
        raise UserError(f"`RUN` must embed {purpose}, but {kind.__qualname__} scores pairs; {way}.")


@contextmanager
def _said_as_typed() -> Iterator[None]:
    """Say what is wrong in the words of the command line."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("`what`", "`RUN`").replace("`device`", "`--device`")) from error
