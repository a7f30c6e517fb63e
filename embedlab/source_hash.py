"""What code computes, told from its source: hashes that change with the code but not with comments or layout.

Two things stand on it: the key of cached features holds the source of the pooling (`code_of`), and the identity of a
run holds the sources of what its configuration names (`sources_of`).

Syntax trees without docstrings are compared. Of a module in `PARTS`, where functions and classes that have nothing to
do with each other stand side by side, only the named definitions count, with those they use of the same module; of any
other, the whole module. Imports are followed as `embedlab.source_imports` says.

Sources are read once per loaded module. A file that is edited later, while this process or its children still run what
was loaded, does not change what they say of themselves.
"""

from __future__ import annotations

import ast
import hashlib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import FunctionType
from typing import Any

from embedlab.source_imports import (
    PARTS,
    Item,
    imported,
    is_installed,
    is_of_a_method,
    is_ours,
    source_file,
    with_packages,
)

__all__ = ["code_of", "module_hashes", "sources_of"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Module:
    """A module's source, its syntax tree without docstrings, and what it was loaded with."""

    source: bytes
    tree: ast.Module
    spec: object

    @cached_property
    def hash(self) -> str:
        """Hash of the whole tree."""
        return _hash(_written(self.tree))


def code_of(function: Callable[..., object]) -> str | None:
    """Return a function's import path and a hash of its code.

    Of a function of embedlab, the code is its definition and those it uses of the same module, so that another
    function beside it changes nothing. Of any other, it is the whole module, with the modules of the user's own that it
    imports.

    Returns:
        None where no import path leads to the function (a lambda, a function made inside another, an object with
        `__call__`) or where a module's code cannot be read.
    """
    if not isinstance(function, FunctionType):
        return None
    module = sys.modules.get(function.__module__)
    if module is None or vars(module).get(function.__qualname__) is not function:
        return None
    try:
        path = source_file(module.__name__)
        if not any(function.__name__ in _defined(statement) for statement in _module(module.__name__, path).tree.body):
            return None
        name = function.__name__ if is_ours(module.__name__) else None
        sources = _reached([Item(module.__name__, path, name)])
    except (OSError, TypeError, SyntaxError):
        return None
    return f"{module.__name__}.{function.__qualname__} {_hash(' '.join(sorted(sources.values())))}"


def sources_of(names: Iterable[str]) -> dict[str, str]:
    """Return what the things that a configuration names stand on.

    Args:
        names: Strings, among them import paths of loaded classes and functions. Others are left alone, and so are
            things of the standard library and of installed packages.

    Returns:
        For each module, or module and definition such as "embedlab.losses:cosent", a hash of its syntax tree. For a
        thing whose source cannot be read, its `repr`, which is told in the log: a run that names it can hardly be
        known again.
    """
    found, words = dict[str, str](), sorted(set(names))
    for name in words:
        for module, definition, value in _named(name):
            if not is_of_a_method(module) if is_ours(module) else is_installed(module):
                continue
            try:
                item = Item(module, source_file(module), definition if module in PARTS else None)
                packages = () if item.name else with_packages(module, item)
                found |= _reached([item, *packages], words)
            except (OSError, TypeError, SyntaxError):
                found[name] = repr(value)
                log.warning("%s cannot be told by its source, so a later run that names it may count as another", name)
    return found


def module_hashes(module: str, path: Path) -> tuple[str, str]:
    """Return hashes of a module's source as it stands, and of its syntax tree."""
    own = _module(module, path)
    return hashlib.sha256(own.source).hexdigest(), own.hash


def _named(path: str) -> Iterator[tuple[str, str, Any]]:
    """Give modules in which an import path finds a thing, with the thing's name there and the thing.

    They are the one that the path names and, where that only hands it on, the one that defines it.
    """
    parts = path.split(".")
    loaded = [end for end in range(1, len(parts)) if ".".join(parts[:end]) in sys.modules]
    if not loaded:
        return
    module, names = ".".join(parts[: loaded[-1]]), parts[loaded[-1] :]
    value = sys.modules[module]
    for name in names:
        value = getattr(value, name, None)  # type: ignore[assignment]
    if not callable(value):
        return
    found = {module: names[0]}
    if (own := getattr(value, "__module__", None)) in sys.modules:
        found.setdefault(own, getattr(value, "__qualname__", names[0]).partition(".")[0])
    yield from ((where, what, value) for where, what in found.items())


_read: dict[tuple[str, Path], _Module] = {}


def _module(name: str, path: Path) -> _Module:
    """Return a module as it was when first asked for since it was loaded.

    Raises:
        OSError, SyntaxError: If it cannot be read.
    """
    spec = getattr(sys.modules.get(name), "__spec__", None)  # another one once it is loaded anew
    held = _read.get((name, path))
    if held is None or held.spec is not spec:
        tree = ast.parse(source := path.read_bytes())  # `inspect.getsource` may give what the file was before
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0].value if node.body and isinstance(node.body[0], ast.Expr) else None
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    node.body = node.body[1:]
        held = _read[name, path] = _Module(source, tree, spec)
    return held


def _written(node: object) -> str:
    """Write a syntax tree without what is empty, in which versions of Python differ."""
    if isinstance(node, ast.AST):
        fields = (f"{name}={_written(own)}" for name, own in ast.iter_fields(node) if own is not None and own != [])
        return f"{type(node).__name__}({','.join(fields)})"
    return f"[{','.join(map(_written, node))}]" if isinstance(node, list) else repr(node)


def _hash(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def _reached(items: Iterable[Item], names: Iterable[str] = ()) -> dict[str, str]:
    """Return the hashes of modules and definitions and, in turn, of those they import, by some of `names` perhaps."""
    found: dict[str, str] = {}
    waiting = list(items)
    while waiting:
        item = waiting.pop()
        key = item.module if item.name is None else f"{item.module}:{item.name}"
        if key in found:
            continue
        try:
            module = _module(item.module, item.path)
        except SyntaxError:
            if item.module in sys.modules:
                raise
            continue  # nothing can import it
        tree = module.tree
        trees = [tree] if item.name is None else [*_definitions(tree, item.name)]
        found[key] = module.hash if item.name is None else _hash("\n".join(sorted(map(_written, trees))))
        waiting += imported(trees, item, names)
    return found


def _definitions(tree: ast.Module, name: str) -> Iterator[ast.stmt]:
    """Give the statements that define a name and, in turn, the names used there."""
    waiting, seen = [name], {name}
    while waiting:
        wanted = waiting.pop()
        for statement in (own for own in tree.body if wanted in _defined(own)):
            yield statement
            used = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)} - seen
            seen |= used
            waiting += sorted(used)


def _defined(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
