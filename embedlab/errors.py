"""The error that is meant for the user, and what names the way out of it."""

from __future__ import annotations

import difflib
import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ["UserError", "did_you_mean", "exit_status", "nearest", "refusals_told"]


# What a disk or a device says that takes no more, or never did; any other such error is a fault of ours.
UNWRITTEN: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EISDIR}


class UserError(ValueError):
    """Something the user asked for cannot be done.

    The message is one sentence: it names the argument, what is needed, what came and the way out. The
    command line prints it without a traceback and exits with status 2.
    """


@contextmanager
def refusals_told() -> Iterator[None]:
    """Tell in a sentence what the system refuses of a path, wherever it is met: a name too long, a file that cannot be read.

    Raises:
        UserError: Instead of the system's error.
    """
    try:
        yield
    except OSError as error:
        path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else None
        if error.errno == errno.ENAMETOOLONG:
            name = "a path" if path is None else f"{path:.60}{'...' if len(path) > 60 else ''}"
            raise UserError(
                f"{name} must be a path that the file system takes, mostly of at most 255 bytes between slashes, but it is too "
                "long; give a shorter one."
            ) from error
        # Where a file cannot be read, that is what failed: those that are written are new, or were found writable before.
        if error.errno == errno.EACCES and path is not None and (closed := _closed(path)) is not None:
            need = "be a folder that can be entered, but it cannot" if closed != path else "be readable, but it is not"
            raise UserError(
                f"{closed} must {need} ({os.strerror(error.errno)}); change its permissions, or name another one."
            ) from error
        raise


def _closed(path: str) -> str | None:
    """Return what keeps a path from being read: the first folder on the way that cannot be entered, or the file itself."""
    for folder in reversed(Path(path).absolute().parents):
        if os.path.isdir(folder) and not os.access(folder, os.X_OK):
            return str(folder)
    return path if os.path.exists(path) and not os.access(path, os.R_OK) else None


def exit_status(command: Callable[[], int], resumes: bool = True) -> int:
    """Run a command; errors of the user, interruptions and full disks are told in a sentence.

    Args:
        command: Returns its exit status.
        resumes: Whether the same command goes on where it was stopped.

    Returns:
        Its exit status; 1 where something could not be written, 2 after an error of the user, 130 after an interruption.
    """
    try:
        with refusals_told():
            status = command()
        if sys.stdout is not None:
            sys.stdout.flush()  # or Python does at the end, and complains in its own way
        return status
    except UserError as error:
        sys.stderr.write(f"embedlab: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        goes_on = "nothing finished is lost, the same command resumes where it stopped"
        anew = "the same command begins anew, but for hidden states that are cached"
        sys.stderr.write(f"embedlab: interrupted; {goes_on if resumes else anew}.\n")
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        _let_go_of_output()
        return 1
    except OSError as error:
        if error.errno not in UNWRITTEN:
            raise
        _let_go_of_output()
        again = ": the same command resumes where it stopped" if resumes else ""
        sys.stderr.write(
            f"embedlab: error: {error.filename or 'the disk or device'} must take what is written, but it cannot "
            f"({os.strerror(error.errno)}); make room, or write elsewhere{again}.\n"
        )
        return 1


def _let_go_of_output() -> None:
    """Let nothing be printed any more where that fails."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
