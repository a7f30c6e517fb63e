"""Which code made a run: the modules that all runs share, by their hashes, and those that are others today.

What a run's configuration names decides its identity and is not listed here. This is the rest of the half that has
torch; no run is voided by it, but tables tell where it has changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from embedlab.source_hash import PACKAGE, is_of_a_method, module_hash

__all__ = ["OTHER", "ROOMS", "older_code", "shared_code"]

# Modules and folders of embedlab that can change a number.
ROOMS: Final = ("backbone", "data", "distributed", "metrics", "packing", "resources", "strategies", "training")
OTHER: Final = "other code"  # where single modules cannot be told


def shared_code() -> dict[str, str]:
    """Return a short hash of every module that all runs share, by its name without `embedlab.`.

    Comments, docstrings and layout do not count.
    """
    found = {}
    for room in ROOMS:
        files = [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").is_file() else (PACKAGE / room).rglob("*.py")
        for path in files:
            name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
            if not is_of_a_method(f"embedlab.{name}"):
                found[name] = module_hash(f"embedlab.{name}", path)
    return dict(sorted(found.items()))


def older_code(result: Mapping[str, Any]) -> list[str]:
    """Return the modules that were others when a run was made, sorted; none where they are the same.

    Args:
        result: Content of `result.json`.

    Returns:
        Names without `embedlab.`; just `OTHER` where the run does not say, or names modules that there are not. A
        module that has come since changes nothing unless another one, or what the run names, uses it.
    """
    then, now = result.get("code"), shared_code()
    if not isinstance(then, Mapping) or not then or not set(then) <= set(now):
        return [OTHER]
    return sorted(name for name in then if then[name] != now[name])
