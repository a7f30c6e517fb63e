"""The error that is meant for the user, and what names the way out of it."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable

__all__ = ["UserError", "did_you_mean", "exit_status", "nearest"]


class UserError(ValueError):
    """Something the user asked for cannot be done.

    The message is one sentence: it names the argument, what is needed, what came and the way out. The
    command line prints it without a traceback and exits with status 2.
    """


def exit_status(command: Callable[[], int]) -> int:
    """Run a command; errors of the user and interruptions are told in a sentence.

    Returns:
        Its exit status; 2 after an error of the user, 130 after an interruption.
    """
    try:
        return command()
    except UserError as error:
        sys.stderr.write(f"embedlab: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(
            "embedlab: interrupted; nothing finished is lost, the same command resumes where it stopped.\n"
        )
        return 130


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the name most like the given one, or None when none is.

    >>> nearest("lora-bi.yml", ["lora-bi.yaml", "freeze.yaml"])
    'lora-bi.yaml'
    """
    lower = {other.lower(): other for other in names}
    found = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    return lower[found[0]] if found else None


def did_you_mean(name: str, names: Iterable[str], prefix: str = "", listing: bool = True) -> str:
    """Return the end of an error sentence: the nearest name, or the names there are, or nothing.

    Args:
        name: What was typed.
        names: What it could have been.
        prefix: Put before the nearest name.
        listing: Whether to list the names if none is near.

    >>> did_you_mean("label", ["labels", "seeds"]), did_you_mean("x", ["labels", "seeds"])
    ('; did you mean labels', '; there are labels, seeds')
    """
    names = sorted(names)
    if (near := nearest(name, names)) is not None:
        return f"; did you mean {prefix}{near}"
    return f"; there are {', '.join(names)}" if listing and 0 < len(names) <= 20 else ""
