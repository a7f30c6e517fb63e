"""YAML as this program reads it: every fault is named with its file and line, and no key may stand twice."""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any, Final

import yaml

from embedlab.errors import UserError, did_you_mean

__all__ = ["existing", "read_value", "read_yaml", "write_value"]

# What PyYAML raises over a value such as a date that is none.
UNREADABLE: Final = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)
DEEPEST: Final = 100  # levels of nesting


class _Loader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """A safe loader that refuses a key given twice, which YAML forbids and PyYAML lets pass."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *base`
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands there twice", key_node.start_mark
                )
            if isinstance(key, Hashable):
                seen.add(key)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


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
    try:
        content = _with_text_keys(_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark is not None else str(path)
        problem = getattr(error, "problem", None) or "something is malformed"
        raise UserError(f"{place} must be YAML, but {problem}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} must be YAML in UTF-8, but byte {error.start} is not; save it as UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path} must be a file that can be read, but it cannot ({error.strerror}).") from error
    except UNREADABLE as error:
        raise UserError(f"{path} must be YAML, but a value in it cannot be read ({error}); quote it.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold `key: value` pairs, got {type(content).__name__}.")
    return content


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


def existing(path: Path) -> Path:
    """Return the path of a file.

    Raises:
        UserError: If there is none; the nearest existing name is suggested.
    """
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{path} must be a file, got a folder.")
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    if folder != path.parent:
        raise UserError(f"{path} does not exist: there is no folder {path.parent}.")
    names = [entry.name for entry in folder.iterdir() if entry.is_file()]
    raise UserError(f"{path} does not exist{did_you_mean(path.name, names, '' if folder == Path() else f'{folder}/')}.")


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
