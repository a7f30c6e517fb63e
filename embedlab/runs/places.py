"""Where runs may be written: names that can be folders, and folders that can be made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from embedlab.errors import UserError
from embedlab.runs.folder import CONFIG, walk_runs, was_begun
from embedlab.yaml_files import read_yaml

__all__ = ["check_folder", "check_name", "check_run_folder", "make_folder", "where_it_lies"]

FORBIDDEN: Final = frozenset('/\\:*?"<>|=')  # in file names somewhere, or in our own command line


def check_name(name: str, where: str) -> None:
    """Refuse a name that cannot be a folder everywhere, or leads elsewhere.

    Args:
        name: Of a study, or of a strategy in tables.
        where: Where it comes from, for messages, such as "`label`".

    Raises:
        UserError: If so.
    """
    bad = [sign for sign in name if sign in FORBIDDEN or not sign.isprintable()]
    if bad or not name or len(name) > 100 or name != name.strip(" .") or name.startswith("-"):
        raise UserError(
            f"{where} must be a name that can be a folder, got {name!r}; use letters, digits, spaces, - and _, and begin "
            "with a letter or digit."
        )


def check_folder(folder: Path, where: str) -> None:
    """Refuse a folder that cannot be made or written to; nothing is made.

    Raises:
        UserError: If so.
    """
    there = folder.absolute()
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        what = "a link that leads to none" if there.is_symlink() else "a file"
        raise UserError(f"{where} must be a folder, but {there} is {what}; name another one.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"{where} must be a folder that can be made, but {there} cannot be written to; name another one."
        )


def check_run_folder(folder: Path, where: str) -> None:
    """Refuse a folder in which other runs lie, or that lies in a run: a report would not find what is below.

    Raises:
        UserError: If so.
    """
    check_folder(folder, where)
    if (other := next(walk_runs(folder), folder)) != folder:
        raise UserError(f"{where} must be a folder of its own, but the run {other} lies in it; name another one.")
    if (other := next(filter(was_begun, folder.absolute().parents), folder)) != folder:
        raise UserError(f"{where} must be a folder of its own, but {folder} lies in the run {other}; name another one.")


def where_it_lies(files: Sequence[Path], run_dir: str | None) -> str | None:
    """Return the folder of a run whose own configuration is read again, wherever that was moved or is seen from.

    Args:
        files: Configurations that were read, the last one winning.
        run_dir: What they and the command line say; another folder than the run's own file says stays.
    """
    for file in files:
        if file.name == CONFIG and was_begun(file.parent) and read_yaml(file).get("run_dir") == run_dir:
            return str(file.parent)
    return run_dir


def make_folder(folder: Path, where: str) -> None:
    """Make a folder where there is none.

    Args:
        folder: The folder.
        where: The argument it comes from, for messages, such as "`run_dir`".

    Raises:
        UserError: If it cannot be made.
    """
    check_folder(folder, where)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{where} must be a folder that can be made, but {folder} cannot ({reason}); name another one."
        ) from error
