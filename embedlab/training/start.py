"""Start a command line: import what a name may mean, and say in one sentence why it cannot be built."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from traceback import walk_tb
from typing import Any, Final, TypeVar

from embedlab import strategies
from embedlab.errors import UserError
from embedlab.strategies.base import EmbeddingStrategy
from embedlab.training import user_code, values
from embedlab.training.help import class_at, hints_of, types_of
from embedlab.training.log import quiet

__all__ = ["meant_for_users", "prepare", "run"]

Built = TypeVar("Built")
UNION: Final = re.compile(r"Does not validate against any of the Union subtypes\s+Subtypes: \[<class '([\w.]+)'>")
BUILT: Final = re.compile(r"^Given value: Namespace\(class_path='([\w.]+)'", re.MULTILINE)


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
        if isinstance(error, UserError):
            raise
        if (said := meant_for_users(error)) is not None:
            raise said from None
        cause = error.__cause__
        if not str(error).startswith("Does not validate"):
            raise
        if cause is None or _is_of_the_parser(cause):
            raise UserError(values.explain(str(error))) from error
        raise cause from None  # a class of the user's own, whose author wants to see where


def meant_for_users(error: BaseException) -> UserError | None:
    """Return what a constructor says to users, which the parser wraps; None where nothing is meant for them.

    Of what may be left out, as `pretraining` of FREEZE, it wraps it once for each option around it. The constructor knows
    its own arguments, not which option it is built for, which is read from the wrappings.
    """
    kind, above = None, list[str]()
    link: BaseException | None = error
    while link is not None and not isinstance(link, UserError):
        if (union := UNION.match(str(link))) is not None:
            inner: Any = class_at(union[1])
            if inner is EmbeddingStrategy and (built := BUILT.findall(str(link))):
                inner = class_at(built[-1])
            else:
                above += [name for name, hint in hints_of(kind).items() if inner in types_of(hint)][:1]
            kind = inner
        link = link.__cause__
    if link is None or not above:
        return link
    option = ".".join(above)
    own = re.match(r"`([\w.]+)`", str(link))
    if own is None or f"{own[1]}.".startswith(f"{option}."):
        return link
    return UserError(f"`{option}.{str(link)[1:]}")


def _is_of_the_parser(error: BaseException) -> bool:
    """Tell whether the parser raised an error, not what it called."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].startswith("jsonargparse.")
