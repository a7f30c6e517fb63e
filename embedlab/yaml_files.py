"""YAML as this program reads it: every fault is named with its file and line, and no key may stand twice."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from embedlab.errors import UserError, did_you_mean

__all__ = ["existing", "read_value", "read_yaml", "texts", "write_value"]

# What PyYAML raises over a value such as a date that is none.
UNREADABLE: Final = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)
KINDS: Final = {"sequence": "list", "mapping": "mapping"}
DEEPEST: Final = 100  # levels of nesting


# What a malformed file most often means, by what libyaml says of it and of the place; `{}` is the character there.
CAUSES: Final = {
    r"quoted scalar.*unexpected end of stream": "a quotation mark is never closed; close it",
    r"flow (mapping|sequence)": "a bracket is never closed, or a comma is missing; add it",
    r"block (mapping|collection).*did not find expected": "a line is indented otherwise than those beside it; align them",
    r"cannot start any token|scanning (an alias|an anchor)": "a value begins with {}; quote it",
    r"mapping values are not allowed": "there is one `: ` too many in the line; quote the value, or give it a line of its own",
    r"could not find expected ':'": "a line is no `key: value`; add the colon and a blank",
    r"undefined alias": "an alias, `*NAME`, stands for nothing; quote the value, or write `&NAME` before it where it is meant",
    r"another document": "a second document begins with ---; keep one",
    r"constructor for the tag '(.*?)'": r"the tag \1 means nothing here; leave it out",
}


class _Loader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """A safe loader that refuses a key given twice, which YAML forbids and PyYAML lets pass, and names every line."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except UNREADABLE as error:  # such as a date that is none
            problem = f"a value cannot be read ({' '.join(str(error).split())}); quote it"
            raise _Fault(None, None, problem, node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, value_node in node.value:
            mark = key_node.start_mark
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *base`
                several = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                if not all(isinstance(own, yaml.MappingNode) for own in several):
                    raise _Fault(None, None, "`<<` merges what is no mapping; give it the alias of one", mark)
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise _Fault(
                    None, None, f"a key is a {KINDS[key_node.id]}, not a word; quote it, or write `key: value`", mark
                )
            key = self.construct_object(key_node, deep=True)
            if key is None or isinstance(key, bool):  # a label or name that YAML takes for something else
                what = "null" if key is None else str(key).lower()
                raise _Fault(None, None, f"the key {key_node.value!r} is read as {what}; quote it", mark)
            if key in seen:
                raise _Fault(None, None, f"the key {key!r} stands there twice; delete one", mark)
            seen.add(key)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


class _Fault(yaml.constructor.ConstructorError):  # type: ignore[misc]
    """A fault whose `problem` is said as it stands."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Args:
        path: The file.

    Returns:
        Its content; an empty file is an empty mapping.

    Raises:
        UserError: If the file is missing, is no YAML, repeats a key or holds something else than a mapping.
    """
    existing(path)
    content: Any = None
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = _with_text_keys(_load(text))
    except yaml.YAMLError as error:
        raise UserError(_sentence(path, text, error)) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}, must be YAML in UTF-8, but holds other bytes; save the file as UTF-8."
        ) from error
    except OSError as error:
        raise UserError(
            f"{path} must be a file that can be read, but it cannot ({error.strerror}); name another one."
        ) from error
    except UNREADABLE as error:
        why = "nested without end; write out what an alias stands for"
        why = why if isinstance(error, RecursionError) else f"unreadable ({' '.join(str(error).split())}); correct it"
        raise UserError(f"{path} must be YAML, but is {why}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        way = "begin no line with -" if isinstance(content, list) else "write a blank after the colon of each"
        way = way if isinstance(content, list | str) else "see `embedlab configs` for files that ship"
        what = "a list" if isinstance(content, list) else textwrap.shorten(repr(content), 60)
        raise UserError(f"{path} must hold `key: value` pairs, got {what}; {way}.")
    return content


def _sentence(path: Path, text: str, error: yaml.YAMLError) -> str:
    """Say what is malformed in a file, where, and what to do."""
    if isinstance(error, yaml.reader.ReaderError):
        place = text.find(chr(error.character)) if isinstance(error.character, int) else -1
        line = f", line {text[:place].count(chr(10)) + 1}," if place >= 0 else ""
        return f"{path}{line} must be YAML, but holds a character that no text has; delete it."
    said = f"{getattr(error, 'context', '') or ''} {getattr(error, 'problem', '') or ''}".strip()
    mark, start = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    opened = start if re.search("quoted|flow", said) else None  # where it begins, not the end of the file
    first = opened or mark
    where = "" if first is None else f", line {first.line + 1},"
    if isinstance(error, _Fault):
        return f"{path}{where} must be YAML, but {error.problem}."
    row, column = (0, 0) if mark is None else (mark.line, mark.column)
    line = "".join(text.splitlines()[row : row + 1])
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return f"{path}{where} must be YAML, but the line is indented with a tab; use blanks."
    for pattern, cause in CAUSES.items():
        if match := re.search(pattern, said):
            sign = {"an alias": "*", "an anchor": "&"}.get(
                match[0].removeprefix("scanning "), line[column : column + 1]
            )
            return f"{path}{where} must be YAML, but {match.expand(cause).replace('{}', repr(sign))}."
    return f"{path}{where} must be YAML, but {said.removeprefix('but ') or 'is malformed'}; correct that line."


def _load(text: str) -> Any:
    """Load YAML that is nested no deeper than a program can follow: libyaml's reader crashes on what is."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise RecursionError(f"it is nested more than {DEEPEST} levels deep")
    return yaml.load(text, Loader=_Loader)  # a safe loader


def _with_text_keys(content: Any) -> Any:
    """Return YAML's content with texts as keys, as options have them."""
    if isinstance(content, dict):
        return {str(key): _with_text_keys(value) for key, value in content.items()}
    return [_with_text_keys(value) for value in content] if isinstance(content, list) else content


def texts(content: Any) -> Iterator[str]:
    """Yield every text in the content of a YAML file that is no key."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for own in content.values() if isinstance(content, dict) else content:
            yield from texts(own)


def existing(path: Path) -> Path:
    """Return the path of a file.

    Raises:
        UserError: If there is none; the nearest existing name is suggested.
    """
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{path} must be a file, got a folder; name a file in it.")
    if path.is_symlink():
        raise UserError(f"{path} must be a file, but is a link that leads to none; mend the link.")
    if path.exists():
        raise UserError(f"{path} must be a file, but is a device or a pipe; write it to a file.")
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    if folder != path.parent:
        raise UserError(f"{path} does not exist: there is no folder {path.parent}; correct the path.")
    names = [entry.name for entry in folder.iterdir() if entry.is_file()]
    near = did_you_mean(path.name, names, "" if folder == Path() else f"{folder}/")
    raise UserError(f"{path} does not exist{near or '; correct the path'}.")


def read_value(text: str) -> Any:
    """Read what was typed after `KEY=` as YAML; what is not YAML is taken as text.

    >>> read_value("3"), read_value("null"), read_value("a: [")
    (3, None, 'a: [')
    """
    try:
        return _load(text)
    except (yaml.YAMLError, *UNREADABLE):
        return text


def write_value(value: Any) -> str:
    """Write a value so that a command line reads it back.

    >>> write_value(None), write_value("stsb"), write_value("null"), write_value({"a": [1]})
    ('null', 'stsb', '"null"', '{"a": [1]}')
    """
    if isinstance(value, str) and read_value(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
