"""embedlab compares ways of turning decoder-only language models into text embedders.

import embedlab

model = embedlab.load("runs/stsb/sgpt-bi/seed-0")    # a run that is finished, or "SGPTBiEncoder" over a decoder
model.encode(["a text", "another"])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedlab.use.loading import load

__all__ = ["load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `load` when it is asked for: importing embedlab itself costs nothing."""
    if name == "load":
        from embedlab.use.loading import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
