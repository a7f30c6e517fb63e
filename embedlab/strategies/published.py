"""Compare arguments with the values that a paper published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

__all__ = ["Published", "differences", "published"]


@dataclass(frozen=True)
class Published:
    """A published value of an argument.

    Args:
        value: The value; of a dataclass, every field is compared.
        source: Where it is published, such as a section of the paper.
    """

    value: Any
    source: str


def published(source: str, **values: Any) -> dict[str, Published]:
    """Return published values of one source, by argument; `a__b` is the field `b` of the argument `a`.

    >>> published("section 3", width=2)["width"]
    Published(value=2, source='section 3')
    """
    return {name.replace("__", "."): Published(value, source) for name, value in values.items()}


def differences(paper: Mapping[str, Published], arguments: Mapping[str, Any]) -> list[str]:
    """List the arguments that differ from their published values.

    Args:
        paper: Published values; `training.warmup` is the field `warmup` of the argument `training`. A field of an
            argument that is None is not compared.
        arguments: Arguments by name.

    Returns:
        A clause for each difference.

    >>> differences(published("section 3", width=2, depth=1), {"width": 3, "depth": 1})
    ['width 3 instead of 2 (section 3)']
    """
    return [clause for name, wanted in paper.items() for clause in _compared(name, arguments, wanted)]


def _compared(name: str, arguments: Mapping[str, Any], wanted: Published) -> Iterator[str]:
    first, *below = name.split(".")
    value = arguments[first]
    for part in below:
        if value is None:
            return
        value = getattr(value, part)
    if is_dataclass(wanted.value) and value is not None:
        for field in fields(wanted.value):
            own = Published(getattr(wanted.value, field.name), wanted.source)
            yield from _compared(f"{name}.{field.name}", arguments, own)
    elif (came := _shown(value)) != (due := _shown(wanted.value)):
        yield f"{name} {came} instead of {due} ({wanted.source})"


def _shown(value: Any) -> str:
    """Write a value as a YAML file would: functions and classes by name, lists in brackets."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    if callable(value):
        return str(getattr(value, "__name__", type(value).__name__))
    return type(value).__name__ if is_dataclass(value) else f"{value}"
