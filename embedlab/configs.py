"""The configurations that ship, found by name: the protocol, strategies, backbones and studies.

The name of `configs/strategies/freeze.yaml` is `strategies/freeze`, or `freeze` alone while no other name ends in it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from embedlab.arguments import Parser
from embedlab.errors import UserError, nearest
from embedlab.yaml_files import existing

__all__ = ["find", "first_line", "folder", "main", "names", "with_files"]

ENDING: Final = ".yaml"
CONFIG: Final = ("-c", "--config")


def folder() -> Path:
    """Return the folder of what ships: inside an installed package, beside it in a checkout."""
    installed = Path(__file__).parent / "shipped"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "configs"


def names() -> list[str]:
    """Return the names of what ships, sorted, such as `compare/demo`, `protocol` and `strategies/freeze`."""
    root = folder()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob(f"*{ENDING}"))


def find(word: str, base: Path | None = None) -> Path:
    """Return the YAML file that is meant: a file, or else what ships under that name.

    Args:
        word: Path of a file, or a name, with or without `.yaml`.
        base: Folder that a path is relative to; the working directory by default.

    Raises:
        UserError: If there is neither, or the name fits several configurations.
    """
    path = Path(word) if base is None else Path(os.path.normpath(base / word))
    if os.path.isfile(path):  # unlike `Path.is_file`, False for what cannot be the name of a file
        return path
    if (shipped := _shipped(word)) is not None:
        return shipped
    if word and (path.suffix or os.path.isdir(path)):
        return existing(path)  # raises, with the file in that folder that is most like it
    raise UserError(
        f"{word or repr(word)} must be a YAML file or the name of one that ships, but is neither; {_near(word)}."
    )


def with_files(words: Sequence[str]) -> list[str]:
    """Return a command line in which every `-c` and `--config` is followed by a file, found as by `find`.

    Raises:
        UserError: If one of them is neither a file nor a name.
    """
    result = list[str]()
    for word in words:
        if word.startswith("-c") and word[2:3] not in ("", "="):  # the name attached, as to any short option
            word = f"-c={word[2:]}"
        option, equals, value = word.partition("=")
        if result and result[-1] in CONFIG and not word.startswith("-"):
            result.append(str(find(word)))
        elif equals and option in CONFIG:
            result.append(f"{option}={find(value)}")
        else:
            result.append(word)
    return result


def _shipped(word: str) -> Path | None:
    """Return what ships under a name, or None."""
    name, every = word.removesuffix(ENDING).removeprefix("configs/"), names()
    found = [name] if name in every else [own for own in every if own.endswith(f"/{name}")]
    if len(found) > 1:
        raise UserError(
            f"{word} must be the name of one shipped configuration, but fits {' and '.join(found)}; write one."
        )
    return folder() / f"{found[0]}{ENDING}" if found else None


def _near(word: str) -> str:
    """Return the end of an error sentence: the name that is most like a word, or how to list all."""
    last = {own.rpartition("/")[2]: own for own in names()}
    near = nearest(word.rpartition("/")[2].removesuffix(ENDING), last)
    return f"did you mean {last[near]}" if near is not None else "`embedlab configs` lists what ships"


def first_line(path: Path) -> str:
    """Return the first line of the comment that a YAML file begins with; nothing where it begins otherwise."""
    line = path.read_text(encoding="utf-8").partition("\n")[0]
    return line.removeprefix("#").strip() if line.startswith("#") else ""


def main(arguments: Sequence[str]) -> int:
    """Run `embedlab configs`: list what ships, or print one file.

    Args:
        arguments: What was typed after `configs`.

    Returns:
        Exit status 0.

    Raises:
        UserError: If nothing ships under the name.
    """
    parser = Parser(
        "embedlab configs",
        "List the configurations that ship, or print one to start from.",
        "example:   embedlab configs strategies/freeze > mine.yaml",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="what to print, such as protocol or strategies/freeze")
    name = parser.read(arguments).name
    if name is not None:
        # No file of the user's: the shell has made the one that the answer goes to before this is asked.
        if (path := _shipped(name)) is None:
            raise UserError(f"`NAME` must be what ships, got {name!r}; {_near(name)}.")
        print(path.read_text(encoding="utf-8"), end="")
        return 0
    width = max(map(len, names()))
    for own in names():
        print(f"{own:{width}}  {first_line(folder() / f'{own}{ENDING}')}")
    return 0
