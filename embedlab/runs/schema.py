"""What the files of a run must hold for others to read them; what is not listed is not looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from embedlab.errors import UserError

__all__ = ["MADE", "PROGRESS", "RESULT", "STATUS", "check"]


@dataclass(frozen=True)
class _Plain:
    """A number or a text; which, is said in words."""

    words: str


@dataclass(frozen=True)
class _Each:
    """A mapping of any names, whose values are alike."""

    value: Any


NUMBER: Final = _Plain("a number")
WHOLE: Final = _Plain("a whole number")
TEXT: Final = _Plain("a text")
TIME: Final = _Plain("a time in ISO 8601")

# A mapping of known names, a list of one kind, or one of the above. Everything may be absent or null but `metrics`.
RESULT: Final = {
    "study": TEXT,
    "label": TEXT,
    "seed": WHOLE,
    "identity": TEXT,
    "settings": TEXT,
    "unselected": TEXT,
    "metrics": _Each(
        {
            **{"spearman": NUMBER, "pearson": NUMBER, "pairs": WHOLE, "undefined": TEXT, "overlapping": WHOLE},
            **{"ndcg@10": NUMBER, "mrr@10": NUMBER, "recall@100": NUMBER, "map": NUMBER},  # of a set that was searched
            **{"queries": WHOLE, "documents": WHOLE},
        }
    ),
    "backbone": {"name": TEXT, "folder": TEXT, "sha256": TEXT},
    "model": {"name": TEXT, "folder": TEXT, "sha256": TEXT},
    "data": _Each({"path": TEXT, "split": TEXT, "query": TEXT, "rows": WHOLE, "documents": WHOLE, "sha256": TEXT}),
    "held_out": _Each(_Each(NUMBER)),
    "parameters": {"trainable": NUMBER},
    "seconds": {
        "features": NUMBER,
        "train": NUMBER,
        "score": NUMBER,
        "total": NUMBER,
        "features_found": NUMBER,
        "stages": _Each(NUMBER),
    },
    "features": {"texts": WHOLE, "texts_found": WHOLE},
    "train_tokens": NUMBER,
    "processes": WHOLE,
    "schedule": {"epochs": NUMBER, "steps": NUMBER, "validate_every": NUMBER},
    "notes": [TEXT],
    "versions": _Each(TEXT),
}
STATUS: Final = {"started": TIME, "ended": TEXT, "pid": WHOLE, "host": TEXT, "error": TEXT, "identity": TEXT}
MADE: Final = {"parts": _Each({"code": _Each(TEXT), "versions": _Each(TEXT)})}
PROGRESS: Final = {"phase": TEXT, "done": WHOLE, "total": WHOLE, "seconds_left": NUMBER}


def check(content: Mapping[str, Any], schema: Mapping[str, Any], path: Path) -> None:
    """Refuse a file of a run in which something is of the wrong kind.

    Args:
        content: What it holds.
        schema: `RESULT`, `STATUS`, `PROGRESS` or `MADE`.
        path: The file, for messages.

    Raises:
        UserError: If so; the sentence names the first such place.
    """
    fault = _fault(content, schema, "")
    if fault is None and schema is RESULT and content.get("metrics") is None:
        fault = ("metrics", "a mapping from sets to their metrics", content.get("metrics"))
    if fault is not None:
        place, words, came = fault
        shown = "none" if came is None else f"{type(came).__name__} {came!r:.40}"
        raise UserError(
            f"{path} must hold {words} as `{place}`, got {shown}; delete it; what has no result is then run again."
        )


def _fault(value: Any, kind: Any, place: str) -> tuple[str, str, Any] | None:
    """Return where something is wrong, what is needed there, and what came; None if nothing is."""
    if value is None:
        return None
    if isinstance(kind, _Plain):
        return None if _is(value, kind) else (place, kind.words, value)
    if isinstance(kind, list):
        if not isinstance(value, Sequence) or isinstance(value, str):
            return place, "a list", value
        if None in value:
            return f"{place}.{list(value).index(None)}", kind[0].words, None
        inner = [(own, kind[0], f"{place}.{number}") for number, own in enumerate(value)]
    elif not isinstance(value, Mapping):
        return place, "a mapping", value
    elif isinstance(kind, _Each):
        inner = [(own, kind.value, f"{place}.{name}") for name, own in value.items()]
        missing = next((f"{place}.{name}" for name, own in value.items() if own is None), None)
        if missing is not None and isinstance(kind.value, Mapping):
            return missing, "a mapping", None
    else:
        inner = [(value.get(name), own, f"{place}.{name}") for name, own in kind.items()]
    return next((fault for own in inner if (fault := _fault(own[0], own[1], own[2].lstrip("."))) is not None), None)


def _is(value: Any, kind: _Plain) -> bool:
    if kind is TEXT or kind is TIME:
        return isinstance(value, str) and _encodes(value) and (kind is TEXT or _is_time(value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if kind is WHOLE:
        return isinstance(value, int) and abs(value) < 2**63
    return (isinstance(value, int) and abs(value) < 2**63) or (isinstance(value, float) and math.isfinite(value))


def _encodes(value: str) -> bool:
    """Tell whether a text can be printed: half of a surrogate pair cannot."""
    return not any("\ud800" <= sign <= "\udfff" for sign in value)


def _is_time(value: str) -> bool:
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False
