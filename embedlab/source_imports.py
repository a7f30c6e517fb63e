"""Which modules a source imports, and in which files they are; found without importing anything.

Imports are followed

- from a module of embedlab, and into embedlab from a user's module, to the strategies and to `PARTS`. `FRAME` is not
  followed: it decides numbers, but those of every strategy, as do backbone, data and training;
- from a user's module to every module of the user's own, wherever Python finds it: beside it, on PYTHONPATH, through a
  link, in an editable install. The standard library, installed packages and `LIBRARIES` are taken as they are.

Of a package, the modules count that are used by their names, as in `embedlab.losses.cosent`; of `PARTS`, the definitions.
One of `PARTS` that is handed on as a value, to `getattr` perhaps, or not used where it is imported, counts as a whole.

A module that `importlib.import_module` takes counts if its name is written out. If only its package is, all modules of
that package count whose names fit; if not even that is, those that the configuration names.
"""

from __future__ import annotations

import ast
import inspect
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Final, NamedTuple

__all__ = [
    "FRAME",
    "PACKAGE",
    "PARTS",
    "Item",
    "imported",
    "is_installed",
    "is_of_a_method",
    "is_ours",
    "source_file",
    "with_packages",
]

PACKAGE: Final = Path(__file__).parent
# Beside the strategies, what a method names: by definition, not by module.
PARTS: Final = ("embedlab.backbone.tuning", "embedlab.losses", "embedlab.pooling")
# Beside the strategies, what all of them share.
FRAME: Final = tuple(
    f"embedlab.strategies.{name}"
    for name in ("arguments", "base", "checkpoint", "contract", "optimisation", "published", "recipe")
)
# Not a user's own even as checkouts; a result tells their versions.
LIBRARIES: Final = {"lightning", "peft", "torch", "transformers"}
STANDARD: Final = Path(os.__file__).parent
INSTALLED: Final = {"site-packages", "dist-packages"}
IMPORTING: Final = {"__import__", "import_module"}
UNKNOWN: Final = "*"  # a part of a name that is only known when the code runs

log = logging.getLogger(__name__)


class Item(NamedTuple):
    """A module, by name and file, or one definition of it."""

    module: str
    path: Path
    name: str | None = None

    @property
    def package(self) -> str:
        """What relative imports start from."""
        return self.module if self.path.stem == "__init__" else self.module.rpartition(".")[0]


def is_of_a_method(module: str) -> bool:
    """Tell whether a module of embedlab belongs to the methods that name it, not to what all runs share.

    >>> is_of_a_method("embedlab.strategies.freeze"), is_of_a_method("embedlab.strategies.base")
    (True, False)
    """
    return module in PARTS or (module.startswith("embedlab.strategies.") and module not in FRAME)


def is_ours(module: str) -> bool:
    """Tell whether a module is of embedlab."""
    return _top(module) == "embedlab"


def is_installed(module: str, path: Path | None = None) -> bool:
    """Tell whether a module is of the standard library or an installed package, not of the user's own.

    Args:
        module: Its name.
        path: Its file; None is that of the loaded module.
    """
    file = path or getattr(sys.modules.get(module), "__file__", None) or ""
    return _is_library(module) or bool(INSTALLED & set(Path(file).parts))


def source_file(module: str) -> Path:
    """Return the source file of a loaded module.

    Raises:
        OSError, TypeError: If it has none.
    """
    if (file := inspect.getsourcefile(sys.modules[module])) is None:
        raise OSError(f"{module} has no source file")
    return Path(file)


def imported(trees: Iterable[ast.AST], item: Item, names: Iterable[str] = ()) -> Iterator[Item]:
    """Give what a module imports, of what is followed: modules, or definitions of `PARTS`.

    Args:
        trees: The parts of the module that count.
        item: The module.
        names: Strings of a configuration, among which a module may find the name of one that it imports.
    """
    trees = list(trees)
    used = {own for tree in trees for own in _used(tree)}
    nodes = [own for tree in trees for own in _nodes(tree)]
    renamed = {}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for path, here, what in _bound(node, item):
                renamed[here] = what.rpartition(".")[2]
                paths = {what + own[len(here) :] for own in used if _is_under(own, here)}
                for own in sorted(paths if any(_is_under(own, path) for own in paths) else {*paths, path}):
                    yield from _at(own, item)
    if not is_ours(item.module):
        for node in nodes:
            if isinstance(node, ast.Call) and node.args:
                yield from _called(node, item, names, renamed)


def with_packages(module: str, asking: Item) -> Iterator[Item]:
    """Give a module and the packages it is in, where an import by another module is followed to them."""
    if is_ours(module):
        names = [module] if is_of_a_method(module) else []
    elif is_ours(asking.module) or (_is_library(module) and _top(module) != _top(asking.module)):
        return
    else:
        parts = module.split(".")
        names = [".".join(parts[:end]) for end in range(1, len(parts) + 1)] if _found(module) else []
    for name in names:
        path = _found(name)
        # Of an installed package, whose own things a configuration may name, its own modules are followed.
        if path is not None and (is_ours(name) or _top(name) == _top(asking.module) or not is_installed(name, path)):
            yield Item(name, path)


@cache
def _nodes(tree: ast.AST) -> list[ast.AST]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom | ast.Call)]


@cache
def _used(tree: ast.AST) -> list[str]:
    """Return the names that a source uses, each with the attributes that it takes of it: `losses.cosent`."""
    return list(_names(tree, frozenset()))


def _names(node: ast.AST, parameters: frozenset[str]) -> Iterator[str]:
    """Give names used in a node, but not those of parameters of the functions around it."""
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.insert(0, node.attr)
        node = node.value
    if isinstance(node, ast.Name) and node.id not in parameters:
        yield ".".join([node.id, *attributes])
    inside: list[ast.AST] = []
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        inside = [node.body] if isinstance(node, ast.Lambda) else [*node.body]
        own = frozenset(argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg))
    for child in ast.iter_child_nodes(node):  # defaults, annotations and decorators are outside of their function
        yield from _names(child, parameters | own if child in inside else parameters)


def _is_under(name: str, above: str) -> bool:
    return f"{name}.".startswith(f"{above}.")


def _bound(node: ast.Import | ast.ImportFrom, item: Item) -> Iterator[tuple[str, str, str]]:
    """Give for each thing imported its path, the name that it is used by here, and what that name stands for."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name, alias.asname or _top(alias.name), alias.name if alias.asname else _top(alias.name)
        return
    above = item.package.split(".") if node.level else []
    above = above[: len(above) + 1 - node.level]
    source = ".".join([*above, *([node.module] if node.module else [])])
    for alias in node.names:
        yield f"{source}.{alias.name}", alias.asname or alias.name, f"{source}.{alias.name}"


def _at(path: str, asking: Item) -> Iterator[Item]:
    """Give the module, with its packages, in which a dotted path finds a thing, or the definition of one in `PARTS`."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        if found := [*with_packages(module, asking)]:
            name = parts[end] if module in PARTS and parts[end:] not in ([], ["*"]) else None
            yield from (own._replace(name=name) for own in found)
            return


def _called(node: ast.Call, item: Item, names: Iterable[str], renamed: Mapping[str, str]) -> Iterator[Item]:
    """Give what a call of `importlib.import_module` or `__import__`, which may be renamed here, imports."""
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if renamed.get(called, called) not in IMPORTING:
        return
    name = _pattern(node.args[0], item)
    if name.startswith("."):
        given = [*node.args[1:], *(own.value for own in node.keywords if own.arg == "package")]
        name = (_pattern(given[0], item) if given else item.package) + name
    package = name.partition(UNKNOWN)[0].rpartition(".")[0]
    if UNKNOWN not in name:
        yield from with_packages(name, item)
    elif not package:
        words = [own for own in names if all(map(str.isidentifier, own.split("."))) and not is_ours(own)]
        found = [own for word in words for own in with_packages(word, item)]
        if not found:
            log.warning("%s imports a module by a name that it makes up, whose source so decides no run", item.module)
        yield from found
    else:
        for place in map(Path, _places(package) or []):
            for path in sorted(place.rglob("*.py")):
                own = ".".join([package, *path.relative_to(place).with_suffix("").parts]).removesuffix(".__init__")
                if fnmatchcase(own, name):
                    yield from with_packages(own, item)


def _pattern(node: ast.expr, item: Item) -> str:
    """Write a text as far as its source tells it."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Name):
        return {"__name__": item.module, "__package__": item.package}.get(node.id, UNKNOWN)
    if isinstance(node, ast.JoinedStr):
        return "".join(_pattern(own, item) for own in node.values)
    if isinstance(node, ast.FormattedValue):
        return _pattern(node.value, item)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _pattern(node.left, item) + _pattern(node.right, item)
    return UNKNOWN


def _top(module: str) -> str:
    return module.partition(".")[0]


def _is_library(module: str) -> bool:
    if (top := _top(module)) not in sys.stdlib_module_names:
        return top in LIBRARIES
    path = _found(top)  # a user's own file of that name may be found first
    return path is None or path.is_relative_to(STANDARD)


def _found(module: str) -> Path | None:
    """Return the source file of a module, loaded or not; None where there is none."""
    origin = None if (spec := _spec(module)) is None else spec.origin
    return Path(origin) if origin is not None and origin.endswith(".py") and Path(origin).is_file() else None


def _places(module: str) -> list[str] | None:
    """Return the folders of a package; None where it is none."""
    spec = _spec(module)
    return None if spec is None or spec.submodule_search_locations is None else list(spec.submodule_search_locations)


def _spec(module: str) -> ModuleSpec | None:
    """Find a module as an import would, but without importing the packages that it is in."""
    spec: ModuleSpec | None = getattr(sys.modules.get(module), "__spec__", None)
    if spec is not None:
        return spec
    above = module.rpartition(".")[0]
    places = _places(above) if above else None
    if above and places is None:
        return None
    found = (finder.find_spec(module, places) for finder in sys.meta_path)
    return next((own for own in found if own is not None), None)
