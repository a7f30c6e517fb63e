"""The one error that is meant for the person at the keyboard."""

from __future__ import annotations

import sys
from collections.abc import Callable

__all__ = ["UserError", "exit_status"]


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
