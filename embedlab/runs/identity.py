"""What makes two runs the same run: hashes of everything that defines one."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

__all__ = ["SHOWN", "content_hash"]

# Options of the trainer that decide how a run is shown, not what comes out.
SHOWN: Final = (
    *("default_root_dir", "logger", "enable_progress_bar", "enable_model_summary", "log_every_n_steps"),
    *("profiler", "detect_anomaly"),
)


def content_hash(content: Any) -> str:
    """Return a hash of plain data that does not depend on the order of keys.

    >>> content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
