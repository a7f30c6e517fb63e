"""What a function computes, told from its code: a hash that changes with the code but not with its comments."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType

__all__ = ["code_of"]

_OURS = "embedlab"
_POOLINGS = "embedlab.pooling"  # the one module of embedlab whose code a user's pooling may stand on


def code_of(function: Callable[..., object]) -> str | None:
    """Return a function's import path and a hash of its code, without comments, docstrings and layout.

    Of a function of embedlab, the code is its definition and those it uses of the same module, so that another
    function beside it changes nothing. Of any other, it is the whole module, with the modules of the same project
    that it imports; installed packages are taken as they are.

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
        tree = _tree(module)
        if not any(function.__name__ in _defined(statement) for statement in tree.body):
            return None
        ours = module.__name__.partition(".")[0] == _OURS
        trees: list[ast.AST] = [*_definitions(tree, function.__name__)] if ours else [*_trees(module, {}).values()]
    except (OSError, TypeError, SyntaxError):
        return None
    dumps = sorted(ast.dump(tree) for tree in trees)
    return f"{module.__name__}.{function.__qualname__} {hashlib.sha256(repr(dumps).encode()).hexdigest()}"


def _tree(module: ModuleType) -> ast.Module:
    """Return a module's syntax tree without docstrings.

    Raises:
        OSError, TypeError, SyntaxError: If its code cannot be read.
    """
    file = inspect.getsourcefile(module)
    if file is None:
        raise OSError(f"{module.__name__} has no source file")
    tree = ast.parse(Path(file).read_bytes())  # `inspect.getsource` may give what the file was before
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return tree


def _definitions(tree: ast.Module, name: str) -> Iterator[ast.stmt]:
    """Give the statements that define a name and, in turn, the names used there."""
    waiting, seen = [name], {name}
    while waiting:
        wanted = waiting.pop()
        for statement in tree.body:
            if wanted not in _defined(statement):
                continue
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


def _trees(module: ModuleType, seen: dict[str, ast.Module]) -> dict[str, ast.Module]:
    """Return the trees of a module and, in turn, of the modules of its own project that it imports, by name."""
    seen[module.__name__] = _tree(module)
    package = module.__spec__.parent if module.__spec__ is not None else None
    for node in ast.walk(seen[module.__name__]):
        for name in _imported(node, package or ""):
            if name not in seen and name in sys.modules and _is_beside(sys.modules[name], module):
                _trees(sys.modules[name], seen)
    return seen


def _imported(node: ast.AST, package: str) -> Iterator[str]:
    """Give the names of the modules that a statement may import."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
        source = ".".join([*above, *([node.module] if node.module else [])])
        yield source
        yield from (f"{source}.{alias.name}" for alias in node.names)


def _is_beside(module: ModuleType, other: ModuleType) -> bool:
    """Tell whether a module belongs to another's project: its package, or the folder which that package is in."""
    top = module.__name__.partition(".")[0]
    if top == _OURS:
        return module.__name__ == _POOLINGS
    if top == other.__name__.partition(".")[0]:
        return True
    file, beside = getattr(module, "__file__", None), getattr(other, "__file__", None)  # built-in ones have none
    if file is None or beside is None:
        return False
    root = Path(beside).resolve().parents[other.__name__.count(".") + (Path(beside).stem == "__init__")]
    path = Path(file).resolve()
    return path.is_relative_to(root) and not {"site-packages", "dist-packages"} & set(path.parts)
