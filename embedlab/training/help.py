"""What `--help` says of an argument that takes a function or a class: what ships, and not the parser's internals."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
import types
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser

from embedlab import losses, pooling
from embedlab.strategies.base import EmbeddingStrategy

__all__ = [
    "HelpfulParser",
    "answer",
    "class_at",
    "hints_of",
    "parameters_of",
    "path_of",
    "shipped",
    "subclasses",
    "types_of",
]

FUNCTIONS: Final = (pooling, losses)
KNOWN: Final = re.compile(r",\s+known\s+subclasses:\s+([^()]*)\)")


def types_of(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself.

    >>> types_of(int | None) == (int, type(None))
    True
    """
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def path_of(value: Any) -> str:
    """Return the dotted path of a function or class."""
    return f"{value.__module__}.{value.__qualname__}"


def class_at(path: str) -> Any:
    """Return the class at a dotted path; None where there is none."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name, None)
    except (Exception, SystemExit):  # a module of the user's own may raise anything
        return None


def hints_of(kind: Any) -> dict[str, Any]:
    """Return the types of a class's arguments; nothing where they cannot be read."""
    try:
        return get_type_hints(kind.__init__)
    except (AttributeError, NameError, TypeError):
        return {}


def parameters_of(kind: Any) -> dict[str, inspect.Parameter]:
    """Return the arguments of a class by name; nothing where they cannot be read."""
    try:
        return dict(inspect.signature(kind).parameters)
    except (TypeError, ValueError):
        return {}


def subclasses(base: Any) -> Iterator[Any]:
    """Yield the imported classes that can be built, the class itself included."""
    if not inspect.isabstract(base):
        yield base
    for own in base.__subclasses__():
        yield from subclasses(own)


def shipped(hint: Any) -> list[Any]:
    """Return the functions or classes of this program that an argument takes.

    Args:
        hint: Type of the argument.

    Returns:
        Functions of the same signature; or classes that subclass the type, where there are several to choose from.
    """
    found: list[Any] = []
    for own in types_of(hint):
        if get_origin(own) is Callable:
            found += [function for module in FUNCTIONS for function in _functions(module) if _takes(function, own)]
        elif get_origin(own) is type:
            (base,) = get_args(own)
            found += [kind for kind in subclasses(base) if base.__module__.startswith("embedlab.")]
        elif (
            inspect.isclass(own) and own.__module__ != "builtins" and (inspect.isabstract(own) or own.__subclasses__())
        ):
            found += [kind for kind in subclasses(own) if not _is_internal(kind)]
    return sorted(dict.fromkeys(found), key=path_of)


def _is_internal(kind: type) -> bool:
    """Tell whether a class is there for this program's or Lightning's own use."""
    return kind.__name__.startswith(("_", "Dummy")) or kind.__module__.startswith("embedlab.training.")


def _functions(module: types.ModuleType) -> Iterator[Callable[..., Any]]:
    yield from (own for name in module.__all__ if inspect.isfunction(own := getattr(module, name)))


def _takes(function: Callable[..., Any], hint: Any) -> bool:
    """Tell whether what a function needs is what a `Callable` gives it."""
    hints = get_type_hints(function)
    needed = [own.name for own in inspect.signature(function).parameters.values() if own.default is own.empty]
    return [hints[name] for name in needed] == list(get_args(hint)[0])


class _Formatter(DefaultHelpFormatter):
    """Says of a function or class what ships."""

    def _expand_help(self, action: argparse.Action) -> str:
        text = super()._expand_help(action)
        if "init_args" in text and "EmbeddingStrategy" in text:
            more = text[text.index("(") :]
            text = f"A strategy by its name or dotted path, or the file of one; --model.NAME sets its options. {more}"
        text = KNOWN.sub(lambda match: _listed(match[1]) + ")", text)
        for hint in (pooling.Pooling, losses.PairLoss):
            signature = ", ".join(own.__name__ for own in get_args(hint)[0])
            ships = ", ".join(map(path_of, shipped(hint)))
            text = text.replace(
                f"type: Callable[[{signature}], Tensor]", f"a function by its dotted path; these ship: {ships}"
            )
        return text

    def _format_action(self, action: argparse.Action) -> str:
        if action.help is not None and "subclass of Tensor" in action.help:
            return ""  # what the parser makes of a function that returns one
        return super()._format_action(action)


def _listed(paths: str) -> str:
    """Return the list of classes without the abstract ones, which nobody can name, and internal ones."""
    kept = [
        own
        for own in re.split(r",\s+", paths)
        if ".Dummy" not in own and not own.startswith("torch.") and not _is_abstract(own)
    ]
    return f", these ship: {', '.join(kept)}" if kept else ""


def _is_abstract(path: str) -> bool:
    module, _, name = path.rpartition(".")
    return inspect.isabstract(getattr(import_module(module), name, None))


class HelpfulParser(LightningArgumentParser):
    """The parser of LightningCLI that takes no abbreviations, and whose help lists what ships."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": _Formatter, "allow_abbrev": False, **kwargs})

    def parse_args(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:  # type: ignore[override]
        """Parse a command line.

        jsonargparse hands an option below that of a class on as `--KEY=VALUE`, where it writes what it read of YAML as Python
        does, so that null becomes the text None; here it is YAML again.
        """
        args = [_as_yaml(own) for own in args] if args is not None and len(args) == 1 else args
        return super().parse_args(args, *more, **options)


def _as_yaml(word: str) -> str:
    """Return `--KEY=VALUE` with None in the value written as YAML's null; other words as they are.

    >>> _as_yaml("--source.limit=None"), _as_yaml("--source={'path': 'a', 'limit': None}")
    ('--source.limit=null', '--source={"path": "a", "limit": null}')
    """
    option, equals, value = word.partition("=")
    if "None" not in value:
        return word
    try:
        return f"{option}{equals}{json.dumps(ast.literal_eval(value))}"
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # it is a text
        return word


def answer(arguments: Sequence[str]) -> str | None:
    """Return the answer to `--model.NAME.help`, where NAME takes a function or one of several classes.

    Args:
        arguments: What was typed.

    Returns:
        What ships, one a line; None if nothing like it was asked.
    """
    for word in arguments:
        match = re.fullmatch(r"--model\.(?:init_args\.)?(\w+)\.help", word)
        hints = [] if match is None else [get_type_hints(own.__init__) for own in subclasses(EmbeddingStrategy)]  # type: ignore[misc]
        for hint in (own[match[1]] for own in hints if match is not None and match[1] in own):
            if found := shipped(hint):
                lines = [f"  {path_of(own)}\n      {(inspect.getdoc(own) or '').splitlines()[0]}" for own in found]
                own_way = "or the dotted path of your own"
                return "\n".join([f"{word.removesuffix('.help')} takes one of these, {own_way}:", *lines])
    return None
