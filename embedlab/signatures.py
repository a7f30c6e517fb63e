"""What a class accepts, read from its source without importing it.

Importing a strategy takes torch and seconds; a mistyped option should be answered at once. So constructors
are read from syntax trees. What cannot be known that way is accepted: the real parser decides later.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import ModuleSpec
from pathlib import Path

from embedlab.errors import UserError
from embedlab.yaml_files import hint

__all__ = ["ClassInfo", "Nested", "Parameter", "find", "nested", "shipped"]

STRATEGIES = Path(__file__).parent / "strategies"
ROOT = "EmbeddingStrategy"  # the class every strategy descends from
HARMLESS = ("ABC", "Generic", "Protocol", "object")  # bases without a constructor


@dataclass(frozen=True)
class Parameter:
    """One argument of a constructor.

    Args:
        has_default: Whether it may be left out.
        annotation: Its type as written, empty without one.
        module: Module in which that type is to be read.
    """

    has_default: bool
    annotation: str
    module: str


@dataclass(frozen=True)
class ClassInfo:
    """What can be known of a class from its source.

    Args:
        name: Its name.
        module: The module that defines it.
        file: The file of that module.
        parameters: Arguments of its constructor without `self`, in order.
        ancestors: Names of the classes it descends from, as far as they were followed.
        traced: Whether they were followed to their end.
        abstract: Whether it looks abstract: ABC among its bases, or an abstract method of its own.
        plain: Whether its arguments stand directly under an option (a dataclass, or a final class); other
            classes may be replaced by a subclass with arguments of its own.
        open: Whether it may accept more than `parameters`, which cannot be known from its source.
        doc: First line of its docstring.
    """

    name: str
    module: str
    file: Path
    parameters: dict[str, Parameter]
    ancestors: tuple[str, ...]
    traced: bool
    abstract: bool
    plain: bool
    open: bool
    doc: str

    @property
    def class_path(self) -> str:
        """The dotted path it can be imported by."""
        return f"{self.module}.{self.name}"

    @property
    def has_backbone(self) -> bool:
        """Whether it reads texts with a decoder."""
        return "backbone" in self.parameters

    @property
    def is_strategy(self) -> bool:
        """Whether it may be a strategy; a class whose ancestors are not all known may always be one."""
        return not self.traced or ROOT in (self.name, *self.ancestors)


@dataclass(frozen=True)
class Nested:
    """The class behind an argument whose options go on below it.

    Args:
        info: The class.
        keyed: Whether names of the user's choice come first, as in `dict[str, Source]`.
    """

    info: ClassInfo
    keyed: bool


def shipped(folder: Path = STRATEGIES, package: str = "embedlab.strategies") -> dict[str, ClassInfo]:
    """Find the strategies in a folder of modules.

    Args:
        folder: The modules; those beginning with an underscore, and `base.py`, are left out.
        package: Its dotted name.

    Returns:
        Name to class, for every public class that descends from EmbeddingStrategy and is not abstract.
    """
    found = {}
    for path in sorted(folder.glob("[!_]*.py")):
        if path.stem == "base":
            continue
        for node in _statements(_parse(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                info = _read(f"{package}.{path.stem}", path, node)
                if ROOT in info.ancestors and not info.abstract:
                    found[node.name] = info
    return found


def find(class_path: str) -> ClassInfo | None:
    """Find a class without importing it.

    Args:
        class_path: Name of a shipped strategy, or the dotted path of any class on `sys.path`.

    Returns:
        What its source says, or None when that cannot be told without running it.

    Raises:
        UserError: If there certainly is no such class.
    """
    module, _, name = class_path.rpartition(".")
    if not module:
        strategies = shipped()
        if name in strategies:
            return strategies[name]
        raise UserError(
            f"{name!r} is not a strategy{hint(name, strategies)} "
            "(a class of your own is named with its module, such as mine.Method)."
        )
    path = _locate(module)
    if path is None:
        known = {info.class_path for info in shipped().values()}
        raise UserError(
            f"{class_path!r} must lead to a class, but there is no module {module!r} in the working "
            f"directory or among what is installed{hint(class_path, known, listing=False)}."
        )
    if path.suffix != ".py":
        return None
    found = _resolve(module, name)
    if found is None and not _may_hold(_parse(path), name):
        names = [node.name for node in _statements(_parse(path)) if isinstance(node, ast.ClassDef)]
        raise UserError(
            f"{class_path!r} must lead to a class, but {path} defines none of that name{hint(name, names)}."
        )
    return found


def nested(parameter: Parameter) -> Nested | None:
    """Return the class whose options stand below an argument, where its type tells.

    `X`, `X | None`, `Optional[X]` and `dict[str, X]` are followed; None for all else.
    """
    try:
        kind = ast.parse(parameter.annotation, mode="eval").body
    except SyntaxError:
        return None
    if isinstance(kind, ast.Constant) and isinstance(kind.value, str):
        return nested(Parameter(parameter.has_default, kind.value, parameter.module))
    kinds = [own for own in _members(kind) if not (isinstance(own, ast.Constant) and own.value is None)]
    if len(kinds) != 1:
        return None
    (kind,) = kinds
    keyed = False
    if isinstance(kind, ast.Subscript) and ast.unparse(kind.value) in ("dict", "Dict", "Mapping"):
        if not isinstance(kind.slice, ast.Tuple) or len(kind.slice.elts) != 2:
            return None
        kind, keyed = kind.slice.elts[1], True
    if not isinstance(kind, ast.Name | ast.Attribute):
        return None
    info = _resolve(parameter.module, ast.unparse(kind))
    return None if info is None else Nested(info, keyed)


def _members(kind: ast.expr) -> Iterator[ast.expr]:
    """Give the members of a union, however it is written."""
    if isinstance(kind, ast.BinOp) and isinstance(kind.op, ast.BitOr):
        yield from _members(kind.left)
        yield from _members(kind.right)
    elif isinstance(kind, ast.Subscript) and ast.unparse(kind.value).split(".")[-1] in ("Optional", "Union"):
        for own in kind.slice.elts if isinstance(kind.slice, ast.Tuple) else [kind.slice]:
            yield from _members(own)
    else:
        yield kind


def _read(module: str, path: Path, node: ast.ClassDef) -> ClassInfo:
    # Above the root of all strategies stand large modules of other packages that tell nothing new.
    bases = [] if node.name == ROOT else [ast.unparse(base).partition("[")[0] for base in node.bases]
    parents = {base: _resolve(module, base) for base in bases if base.rpartition(".")[2] not in HARMLESS}
    known = [parent for parent in parents.values() if parent is not None]
    names = [base.rpartition(".")[2] for base in bases]
    decorators = {_called(own) for own in node.decorator_list}
    parameters, is_open = _constructor(module, node, list(parents.values()), "dataclass" in decorators)
    inner = {_called(own) for item in node.body if isinstance(item, ast.FunctionDef) for own in item.decorator_list}
    return ClassInfo(
        name=node.name,
        module=module,
        file=path,
        parameters=parameters,
        ancestors=tuple(dict.fromkeys([*names, *(name for parent in known for name in parent.ancestors)])),
        traced=None not in parents.values() and all(parent.traced for parent in known),
        abstract="ABC" in names or "abstractmethod" in inner or node.name == ROOT,
        plain=bool({"final", "dataclass"} & decorators),
        open=is_open,
        doc=(ast.get_docstring(node) or "").partition("\n")[0],
    )


def _called(decorator: ast.expr) -> str:
    """Return the bare name of a decorator."""
    return ast.unparse(decorator).partition("(")[0].rpartition(".")[2]


def _constructor(
    module: str, node: ast.ClassDef, parents: Sequence[ClassInfo | None], is_dataclass: bool
) -> tuple[dict[str, Parameter], bool]:
    """Return the arguments of a class's constructor, and whether there may be more."""
    inherited: dict[str, Parameter] = {}
    for parent in reversed(parents):
        inherited.update(parent.parameters if parent is not None else {})
    for own in reversed(node.body):
        if isinstance(own, ast.FunctionDef) and own.name == "__init__":
            found = _arguments(own.args, module)
            # What **kwargs takes usually goes to the parent, but only running it would tell.
            return ({**found, **inherited}, True) if own.args.kwarg else (found, False)
    if is_dataclass:
        for own in node.body:
            if isinstance(own, ast.AnnAssign) and isinstance(own.target, ast.Name):
                kind, value = ast.unparse(own.annotation), own.value and ast.unparse(own.value)
                if "ClassVar" not in kind and "init=False" not in (value or ""):
                    inherited[own.target.id] = Parameter(value is not None, kind, module)
    return inherited, any(parent is None or parent.open for parent in parents)


def _arguments(arguments: ast.arguments, module: str) -> dict[str, Parameter]:
    """Return the named arguments of a method, without the first."""
    named = [*arguments.posonlyargs, *arguments.args]
    required: list[ast.expr | None] = [None] * (len(named) - len(arguments.defaults))
    pairs = [*zip(named, [*required, *arguments.defaults], strict=True)][1:]
    pairs += [*zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return {
        one.arg: Parameter(default is not None, ast.unparse(one.annotation) if one.annotation else "", module)
        for one, default in pairs
    }


def _resolve(module: str, name: str, depth: int = 8) -> ClassInfo | None:
    """Follow a name used in a module to the class it stands for; None when it leads elsewhere."""
    path = _locate(module)
    if path is None or path.suffix != ".py" or depth == 0:
        return None
    first, _, rest = name.partition(".")
    for node in reversed(list(_statements(_parse(path)))):
        if isinstance(node, ast.ClassDef) and node.name == first and not rest:
            return _read(module, path, node)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == first:
                    source = _absolute(node, module, path)
                    if rest:  # `from package import module`, then `module.Class`
                        return _resolve(f"{source}.{alias.name}", rest, depth - 1)
                    return _resolve(source, alias.name, depth - 1)
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname == first and rest:
                    return _resolve(alias.name, rest, depth - 1)
                if alias.asname is None and name.startswith(f"{alias.name}."):
                    return _resolve(alias.name, name.removeprefix(f"{alias.name}."), depth - 1)
    return None


def _absolute(node: ast.ImportFrom, module: str, path: Path) -> str:
    """Return the module that a `from ... import` reads, with the leading dots resolved."""
    if node.level == 0:
        return node.module or ""
    parts = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, node.module] if node.module else parts)


def _may_hold(tree: ast.Module, name: str) -> bool:
    """Tell whether a module may hold a name although it defines no class of that name."""
    for node in _statements(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            if any((alias.asname or alias.name) in (name, "*") for alias in node.names):
                return True
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            if node.name == "__getattr__":
                return True
        elif any(isinstance(own, ast.Name) and own.id in (name, "globals", "setattr") for own in ast.walk(node)):
            return True
    return False


def _statements(tree: ast.Module | ast.If | ast.Try) -> Iterator[ast.stmt]:
    """Give the statements of a module, with those under a top-level `if` or `try`."""
    blocks = [tree.body] if isinstance(tree, ast.Module) else [tree.body, tree.orelse]
    if isinstance(tree, ast.Try):
        blocks += [handler.body for handler in tree.handlers]
    for node in (own for block in blocks for own in block):
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements(node)


def _locate(module: str) -> Path | None:
    """Find the file of a module, running neither it nor the packages around it."""
    places: list[str] | None = None
    spec: ModuleSpec | None = None
    parts = module.split(".")
    for number in range(len(parts)):
        spec = _spec(".".join(parts[: number + 1]), places)
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or [])
        if number + 1 < len(parts) and not places:
            return None
    return Path(spec.origin) if spec is not None and spec.origin and os.path.isfile(spec.origin) else None


def _spec(name: str, places: list[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        search = getattr(finder, "find_spec", None)
        spec: ModuleSpec | None = search(name, places) if search is not None else None
        if spec is not None:
            return spec
    return None


def _parse(path: Path) -> ast.Module:
    state = path.stat()
    return _parse_version(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)
def _parse_version(path: Path, changed: int, size: int) -> ast.Module:
    """Parse a file once; time and size are there to notice that it changed.

    Raises:
        UserError: If the file is not Python.
    """
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise UserError(f"{path}{line} must be Python, but {reason}.") from error
