"""Start a command line: import what a name may mean, and say in one sentence why it cannot be built."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from traceback import walk_tb
from typing import TypeVar

from embedlab import strategies
from embedlab.errors import UserError
from embedlab.training import user_code, values
from embedlab.training.log import quiet

__all__ = ["prepare", "run"]

Built = TypeVar("Built")


def prepare() -> None:
    """Silence what a user can do nothing about, and import every strategy, so that names need no import path."""
    quiet()
    for module in pkgutil.iter_modules(strategies.__path__):
        importlib.import_module(f"{strategies.__name__}.{module.name}")


def run(build: Callable[[], Built]) -> Built:
    """Build a command line, which does what it asks for.

    Raises:
        UserError: If that cannot be done.
    """
    try:
        return build()
    except SystemExit as error:
        if (fault := user_code.exit_fault(error)) is not None:
            raise UserError(fault) from error
        raise
    except ValueError as error:
        cause = error.__cause__
        if isinstance(cause, UserError):  # the parser wraps what a constructor says
            raise cause from None
        if not str(error).startswith("Does not validate"):
            raise
        if cause is None or _is_of_the_parser(cause):
            raise UserError(values.explain(str(error))) from error
        raise cause from None  # a class of the user's own, whose author wants to see where


def _is_of_the_parser(error: BaseException) -> bool:
    """Tell whether the parser raised an error, not what it called."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].startswith("jsonargparse.")
