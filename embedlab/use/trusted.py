"""What the configuration of a run may name: nothing that could be imported from modules that are not allowed."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from embedlab import runs
from embedlab.errors import UserError

__all__ = ["IMPORT_PATH", "check_modules", "import_paths"]

IMPORT_PATH: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


def check_modules(value: Any, folder: Path, allowed: Collection[str]) -> None:
    """Refuse a configuration that names what could be imported from modules that are not allowed.

    Raises:
        UserError: If so.
    """
    for path in import_paths(value):
        module = path.partition(".")[0]
        if importlib.util.find_spec(module) is None or _is_inside(path, allowed):  # finding imports nothing
            continue
        raise UserError(
            f"`model` in {folder / runs.CONFIG} must name nothing outside embedlab, but it names {path}, whose module would "
            f"be executed; if you trust it, give `allow=[{module!r}]` (--allow {module})."
        )


def _is_inside(path: str, allowed: Collection[str]) -> bool:
    """Tell whether an import path leads to what an allowed module defines, not to what that has imported itself."""
    if not any(f"{path}.".startswith(f"{own}.") for own in allowed):
        return False
    found: Any = None
    for name in path.split("."):
        above = found
        found = getattr(found, name, None)
        if found is None:
            try:
                found = importlib.import_module(f"{above.__name__}.{name}" if above is not None else name)
            except (ImportError, AttributeError):
                return True  # leads nowhere, which the parser will say
    home = found.__name__ if inspect.ismodule(found) else str(getattr(found, "__module__", ""))
    return any(f"{home}.".startswith(f"{own}.") for own in allowed)


def import_paths(value: Any) -> Iterator[str]:
    """Yield all strings that may be import paths."""
    if isinstance(value, Mapping):
        for own in value.values():
            yield from import_paths(own)
    elif isinstance(value, list | tuple):
        for own in value:
            yield from import_paths(own)
    elif isinstance(value, str) and IMPORT_PATH.fullmatch(value):
        yield value
