"""The one error that is meant for the person at the keyboard."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(ValueError):
    """Something the user asked for cannot be done.

    The message is one sentence: it names the argument, what is needed, what came and the way out. The
    command line prints it without a traceback and exits with status 2.
    """
