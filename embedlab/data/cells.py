"""Cells of a table: texts as they are, other values as people write them."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any

from embedlab.data.readers import Table
from embedlab.errors import UserError

__all__ = ["has", "plain", "tells_content", "text_in"]

PLAIN = (str, bool, int, float, NoneType)
KINDS = {list: "a list", dict: "an object", bool: "true or false", int: "a number", float: "a number"}


def has(table: Table) -> str:
    """Say which columns there are, and what to do if these are not those that were meant."""
    return f"it has {', '.join(map(shortened, table.columns))}{table.remark and f'; {table.remark}'}"


def plain(value: Any) -> str:
    """Write a value as people do, not as Python does; a missing one as an empty string."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    # A column of whole numbers with a gap is one of floats.
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def tells_content(value: Any) -> bool:
    """Tell whether a value is written by its content, unlike an image, of which an address is written."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and tells_content(own) for key, own in value.items())
    return all(map(tells_content, value)) if isinstance(value, list) else isinstance(value, PLAIN)


def text_in(table: Table, row: int, index: int, column: str) -> str:
    """Return a text as it is; an empty one is refused, as no decoder can read it."""
    value = table.rows[row][index] if index < len(table.rows[row]) else None
    must = f"{table.place(row)}: column {column!r} must hold"
    if value is not None and not isinstance(value, str):  # a number may be a missing text, or an id
        kind = KINDS.get(type(value), type(value).__name__)
        raise UserError(
            f"{must} a text, got {kind} ({shortened(plain(value))}); name another column, or write a string."
        )
    if value is not None and any("\ud800" <= sign <= "\udfff" for sign in value):
        raise UserError(f"{must} Unicode text, got half of a surrogate pair; mend it.")
    if value is None or not value.strip():
        raise UserError(f"{must} a text, got an empty one; write one, leave the row out, or name another column.")
    return value


def shortened(text: str, longest: int = 40) -> str:
    """Put a text on one line, and cut it if it is too long for a message."""
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
