"""Which code made a run: the modules that all runs share, by their hashes, and those that are others today.

What a run's configuration names decides its identity and is not listed here. This is the rest of the half that has
torch; no run is voided by it, but tables tell where it has changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from embedlab.source_hash import module_hashes
from embedlab.source_imports import PACKAGE, is_of_a_method

__all__ = ["OTHER", "ROOMS", "different_code", "older_code", "shared_code"]

# Modules and folders of embedlab that can change a number.
ROOMS: Final = (
    "backbone",
    "data",
    "distributed",
    "json_lines",
    "metrics",
    "packing",
    "resources",
    "retrieval",
    "strategies",
    "training",
)
OTHER: Final = "other code"  # where single modules cannot be told


def shared_code() -> dict[str, str]:
    """Return two short hashes of every module that all runs share, by its name without `embedlab.`.

    The first is of the file as it stands. The second, of its syntax tree, decides whether it is the same: comments,
    docstrings and layout do not count. It takes longer, and is needed only where the first differs.
    """
    return {name: " ".join(own[:12] for own in module_hashes(f"embedlab.{name}", path)) for name, path in _files()}


def older_code(result: Mapping[str, Any]) -> list[str]:
    """Return the modules that were others when a run was made, sorted; none where they are the same.

    Args:
        result: Content of `result.json`.

    Returns:
        Names without `embedlab.`; just `OTHER` where the run does not say, or names modules that there are not. A
        module that has come since changes nothing unless another one, or what the run names, uses it.
    """
    then, now = result.get("code"), dict(_files())
    if not isinstance(then, Mapping) or not then or not set(then) <= set(now):
        return [OTHER]
    return [name for name, path in now.items() if name in then and _is_other(str(then[name]), name, path)]


def different_code(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the modules that were not the same when each of some runs was made, sorted; what does not say is left out.

    >>> different_code([{"code": {"packing": "1 a", "data": "1 b"}}, {"code": {"packing": "2 a", "data": "2 c"}}, {}])
    ['data']
    """
    trees: dict[str, set[str]] = {}
    for result in results:
        if isinstance(code := result.get("code"), Mapping):
            for name, own in code.items():
                trees.setdefault(str(name), set()).add(str(own).rpartition(" ")[2])
    return sorted(name for name, own in trees.items() if len(own) > 1)


def _files() -> list[tuple[str, Path]]:
    """Return the shared modules, by name, with their files."""
    found = []
    for room in ROOMS:
        for path in [PACKAGE / f"{room}.py", *(PACKAGE / room).rglob("*.py")]:
            name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
            if path.is_file() and not is_of_a_method(f"embedlab.{name}"):
                found.append((name, path))
    return sorted(found)


def _is_other(then: str, name: str, path: Path) -> bool:
    source, _, tree = then.partition(" ")
    if hashlib.sha256(path.read_bytes()).hexdigest()[:12] == source:
        return False
    try:
        return module_hashes(f"embedlab.{name}", path)[1][:12] != tree
    except SyntaxError:  # it is being edited; no run was made by that
        return True
