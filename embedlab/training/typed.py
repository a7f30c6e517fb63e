"""What was typed, and what stands in the files that were named: where an option stands, and what the user calls it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from embedlab.errors import UserError
from embedlab.yaml_files import read_value, read_yaml, texts

__all__ = ["ANY", "FILES", "as_typed", "given_texts", "option_of", "place", "value_in", "with_key", "words"]

ANY: Final = "NAME"  # stands in a message for a key of the user's choice
OPTION: Final = re.compile(r"`(\w+)((?:\.\w+)*)`")
FILES: Final = ("-c", "--config")
KEYED: Final = re.compile(rf"`([\w.]+)\.{ANY}\.([\w.]+)`")


def as_typed(sentence: str, options: Collection[str]) -> str:
    """Name the options of a strategy as they are typed: `model.blocks`, where the strategy itself says `blocks`.

    What is said of a stage stays as it is, as its options stand elsewhere.

    >>> as_typed("`blocks` must be such, got `data.blocks`.", ["blocks"])
    '`model.blocks` must be such, got `data.blocks`.'
    """
    if sentence.startswith("stage "):
        return sentence
    return OPTION.sub(lambda found: f"`model.{found[1]}{found[2]}`" if found[1] in options else found[0], sentence)


def words(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each word that was typed, with the option before it; `--a=b` is split."""
    for option, word in pairwise(["", *arguments]):
        name, equals, value = word.partition("=")
        yield (name, value) if equals and name.startswith("-") else (option, word)


def given_texts(arguments: Sequence[str]) -> Iterator[str]:
    """Yield every text that was typed as a value or stands in a file that was named."""
    for name, value in words(arguments):
        yield from texts(read_yaml(Path(value)) if name in FILES else read_value(value))


def value_in(sentence: str) -> str | None:
    """Return the value that a sentence says came, without quotes and as far as it is shown; None where it says none."""
    came = re.search(r", got '?(.*?)'?(;|\.$)", sentence)
    return None if came is None else came[1].removesuffix("...")


def place(option: str, arguments: Sequence[str], value: str = "") -> str:
    """Return which file an option stands in, with a value; nothing where it was typed."""
    for file, content in reversed(list(_files(arguments))):
        found = _at(content, option)
        if found is not None and value in str(found):
            return f" in {file}"
    return ""


def option_of(path: str, arguments: Sequence[str]) -> str | None:
    """Return the option that was given an import path, or one that begins with it, in a file or typed; None if none was."""
    given = [("", content) for _, content in _files(arguments)]
    given += [(name.removeprefix("--"), read_value(value)) for name, value in words(arguments) if name.startswith("--")]
    leaves = (leaf for option, content in given for leaf in _leaves(option, content))
    found = [option for option, text in leaves if f"{text}.".startswith(f"{path}.")]
    return (
        ".".join(own for own in found[-1].split(".") if own not in ("", "init_args", "class_path")) if found else None
    )


def _leaves(option: str, content: Any) -> Iterator[tuple[str, str]]:
    """Yield every text below an option, with its dotted name."""
    if isinstance(content, Mapping):
        for key, own in content.items():
            yield from _leaves(f"{option}.{key}", own)
    elif isinstance(content, list):
        for own in content:
            yield from _leaves(option, own)
    elif isinstance(content, str):
        yield option, content


def with_key(sentence: str, arguments: Sequence[str]) -> str:
    """Write the key of the user's choice into a sentence about what stands below one; as it is where none is found."""
    if (match := KEYED.search(sentence)) is None:
        return sentence
    above, below, came = match[1], match[2], value_in(sentence) or ""
    contents: list[Any] = [_at(content, above) for _, content in _files(arguments)]
    typed: list[str] = []
    for name, value in words(arguments):
        if name == f"--{above}":
            contents.append(read_value(value))
        key = name.removeprefix(f"--{above}.").removesuffix(f".{below}")
        if name == f"--{above}.{key}.{below}" and came in value:
            typed.append(key)
    pairs = [pair for content in contents if isinstance(content, Mapping) for pair in content.items()]
    found = [str(key) for key, own in pairs if (inner := _at(own, below)) is not None and came in str(inner)] + typed
    return sentence.replace(f"{above}.{ANY}", f"{above}.{found[-1]}") if found else sentence


def _files(arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield the files that were named and can be read."""
    for name, file in words(arguments):
        if name in FILES:
            try:
                yield file, read_yaml(Path(file))
            except UserError:
                continue


def _at(content: Any, option: str) -> Any:
    return reduce(_inside, option.split("."), content)


def _inside(content: Any, part: str) -> Any:
    """Return what a key holds, in `init_args` or in the members of a list too."""
    members = content if isinstance(content, list) else [content]
    for own in members:
        places: tuple[Any, ...] = (own, own.get("init_args")) if isinstance(own, Mapping) else ()
        for level in places:
            if isinstance(level, Mapping) and part == ANY:
                return list(level.values())
            if isinstance(level, Mapping) and part in level:
                return level[part] if level[part] is not None else ""
    return None
