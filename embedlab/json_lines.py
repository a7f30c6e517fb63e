"""JSON lines: the one place where they are parsed, for tables, retrieval sets, and files of texts and pairs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from embedlab.errors import UserError

__all__ = ["read_objects"]


def read_objects(lines: Iterable[str], path: Path, plain: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the object of every line with the line's number, from 1; blank lines are passed over.

    Args:
        lines: The lines, of any length together: one is held at a time.
        path: The file they are of, for messages.
        plain: Whether a line may be a JSON string too, which is then the `text` of its object.

    Raises:
        UserError: If a line is anything else.
    """
    wanted = "a JSON object or a JSON string" if plain else "a JSON object"
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            record = json.loads(line)
            if "\\ud" in line.lower():
                json.dumps(record, ensure_ascii=False).encode()  # refuses half of a surrogate pair
        except UnicodeEncodeError as error:
            raise UserError(
                f"{place}: must hold Unicode text, got half of a surrogate pair; mend that line."
            ) from error
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", error)
            raise UserError(f"{place}: must be {wanted}, got something else ({reason}); mend that line.") from error
        if plain and isinstance(record, str):
            record = {"text": record}
        if not isinstance(record, dict):
            raise UserError(f"{place}: must be {wanted}, got {type(record).__name__}; mend that line.")
        yield number, record
