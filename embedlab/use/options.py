"""Options by which commands are told which model to use."""

from __future__ import annotations

import argparse
from typing import Any

from embedlab.errors import UserError

__all__ = ["add_model_options", "model_of"]


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
    try:
        return load(what, backbone=backbone, device=options.device, dtype=options.dtype, allow=options.allow)
    except UserError as error:
        raise UserError(str(error).replace("`what`", "`RUN`").replace("`device`", "`--device`")) from error
