"""What the parser says of names it does not know, as one sentence with a way out.

The names there are come from the parser itself: its own options, and those it makes of a class.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Final

from jsonargparse import ArgumentParser

from embedlab.errors import did_you_mean, nearest
from embedlab.strategies.base import EmbeddingStrategy
from embedlab.training.help import class_at, subclasses
from embedlab.training.typed import ANY, FILES, given_texts, option_of, place, value_in, with_key, words
from embedlab.training.user_code import import_fault, no_module
from embedlab.training.values import explain, is_about_a_value
from embedlab.yaml_files import read_value, read_yaml

__all__ = ["complaint", "options_of", "strategy_of", "with_class_first"]

KEY: Final = re.compile(r'Parser key "([^"]+)":')
CLASS: Final = re.compile(r"Problem with given class_path '([^']+)':")
BASE: Final = re.compile(r"Subtypes: \[(dict\[str, )?.*?([a-z]\w*\.[\w.]+)")
UNKNOWN: Final = re.compile(
    r"Option '([^']+)' is not accepted|unrecognized arguments: (\S+)|"
    r"(?:Group '([^']+)' does|Subcommand '\w+' does) not accept option '([^']+)'"
)
NESTED: Final = re.compile(r"NestedArg\(key='([^']+)'")
NO_NAME: Final = re.compile(r"module '([^']+)' has no attribute '([^']+)'")
NO_MODULE: Final = re.compile(r"No module named '([^']+)'")
NO_CLASS: Final = re.compile(r"Expected a dot import path string: (\S+)")
ALIEN: Final = re.compile(r"Import path (?:\S+ )?does not correspond to a subclass of (\w+)")
ABSTRACT: Final = re.compile(r"Expected an instantiatable class, but (?:\S+ )?is abstract")
OURS: Final = ("embedlab.", "lightning.")
OWNERS: Final = {"trainer": "Trainer", "data": "DataModule"}


def complaint(message: str, parser: ArgumentParser, arguments: Sequence[str]) -> str:
    """Turn what the parser says into one sentence.

    Args:
        message: What it says, on several lines.
        parser: The parser of the subcommand.
        arguments: What was typed, the subcommand included.

    Returns:
        The argument, what is needed, what came and the way out; where this knows no better, the parser's own words
        on one line.
    """
    return with_key(_complaint(message, parser, arguments), arguments)


def _complaint(message: str, parser: ArgumentParser, arguments: Sequence[str]) -> str:
    if (fault := import_fault(own for own in given_texts(arguments) if own in message)) is not None:
        return fault
    if is_about_a_value(message):
        return _placed(explain(message), arguments)
    no_model = "arguments are required" in message and message.rstrip().endswith(".model")
    if no_model or "Not a valid subclass of EmbeddingStrategy" in message:
        came = "none" if no_model else _given(message)
        return (
            f"`model`{place('model', arguments)} must name a strategy, got {came}; give -c configs/strategies/NAME.yaml, or "
            f"--model with one of {_list(_concrete(EmbeddingStrategy))}."
        )
    keys, chosen, base = list[tuple[int, str]](), "", ""
    for line in message.splitlines():
        depth = len(line) - len(line.lstrip(" -"))
        if match := KEY.search(line):
            keys, base = [*(own for own in keys if own[0] < depth), (depth, match[1])], ""
        elif match := BASE.search(line):
            base = match[2]
            if match[1]:
                keys.append((depth, ANY))
        elif match := CLASS.search(line):
            chosen = match[1]
        elif match := UNKNOWN.search(line):
            option = ".".join(own for own in (match[1] or match[2] or match[3], match[4]) if own)
            return _unknown(option.partition("=")[0], _joined(keys), chosen, parser, arguments)
        elif (match := NESTED.search(message)) and ABSTRACT.search(line):
            return f"`{_joined(keys)}.{match[1]}` must come behind what names the class; put -c or --{_joined(keys)} first."
        elif match and keys and keys[-1][1] == ANY and NO_CLASS.search(line):
            name, _, option = match[1].partition(".")
            return _unknown(option, f"{_joined(keys[:-1])}.{name}", base, parser, arguments)
        elif (inner := _below_option(line, _joined(keys), arguments)) is not None:
            return _no_class(line, inner, "", "", arguments) or _placed(explain(message), arguments)
        elif sentence := _no_class(line, _joined(keys), chosen or _given(message), base, arguments):
            return sentence
    return _placed(explain(message), arguments)


def _below_option(line: str, option: str, arguments: Sequence[str]) -> str | None:
    """Return the option below another that was given the path which leads nowhere; None where the line tells of none."""
    match = NO_NAME.search(line) or NO_MODULE.search(line)
    found = option_of(".".join(match.groups()), arguments) if match else None
    return found if found is not None and option and found.startswith(f"{option}.") else None


def _placed(sentence: str, arguments: Sequence[str]) -> str:
    """Add which file the refused value stands in; nothing where it was typed."""
    match = re.match(r"`([^`]+)`(?= must)", sentence)
    came = value_in(sentence)
    if match is None or came is None:
        return sentence
    return f"{match[0]}{place(match[1], arguments, came)}{sentence[match.end() :]}"


def _joined(keys: Sequence[tuple[int, str]]) -> str:
    return ".".join(key for _, key in keys)


def options_of(kind: type) -> set[str]:
    """Return the options that the parser makes of a class, `backbone` and `backbone.name` alike."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, fail_untyped=False)
    return _options(parser)


def strategy_of(arguments: Sequence[str]) -> type[EmbeddingStrategy] | None:
    """Return the strategy that a command line names last; None where there is none."""
    name = next((path for path in reversed(list(_models(arguments))) if path), "")
    short = {own.__name__: own for own in subclasses(EmbeddingStrategy)}
    kind = class_at(name) if "." in name else short.get(name)
    return kind if inspect.isclass(kind) and issubclass(kind, EmbeddingStrategy) else None


def with_class_first(arguments: Sequence[str]) -> list[str]:
    """Return a command line that names the strategy before its first option, which the parser wants.

    So the YAML file of a decoder may come before that of the strategy; whatever comes later still wins.
    """
    paths = list(_models(arguments))
    named = [path for path in paths if path]
    return ["--model", named[0], *arguments] if named and not paths[0] else list(arguments)


def _models(arguments: Sequence[str]) -> Iterator[str]:
    """Yield each class that is named for the strategy, and nothing ("") for options of it without a class."""
    for name, value in words(arguments):
        if name in FILES:
            model = read_yaml(Path(value)).get("model")
        elif name == "--model":
            model = read_yaml(Path(value)) if value.endswith(".yaml") else read_value(value)
        elif name == "--model.class_path":
            model = value
        else:
            model = {} if name.startswith("--model.") else None
        if model is not None:
            yield str((model.get("class_path") if isinstance(model, Mapping) else model) or "")


def _unknown(option: str, prefix: str, chosen: str, parser: ArgumentParser, arguments: Sequence[str]) -> str:
    """Say that there is no such option, and which is like it."""
    if not prefix and not option.startswith("--") and option in arguments:
        way = f"leave it out, or write --{option.lstrip('-')}"
        return f"`{option}` must be an option, which begins with --, or the value of one; {way}."
    kind, strategy = class_at(chosen) if chosen else None, strategy_of(arguments)
    names = options_of(kind) if kind is not None else _options(parser)
    owner = kind.__name__ if kind is not None else f"embedlab {arguments[0]}"
    parts = [own for own in option.removeprefix("--").split(".") if own != "init_args"]
    for number in range(1, len(parts) + 1):
        known, part = parts[: number - 1], parts[number - 1].removesuffix("+")
        if ".".join([*known, part]) in names:
            continue
        whole = ".".join([*([prefix] if prefix else []), *known, part])
        if prefix or known:
            beside = _children(names, known)
            owner = OWNERS.get(whole.rpartition(".")[0], owner)
            near = did_you_mean(part, beside, f"{whole.rpartition('.')[0]}.") if beside else "; it has none"
        else:
            near = _anywhere(part, names, strategy)
        return f"`{whole}`{place(whole, arguments)} must be an option of {owner}{near}."
    return f"`{option.removeprefix('--')}` must be an option of {owner}."


def _anywhere(name: str, names: set[str], strategy: type | None) -> str:
    """Return the way out for an option without its section."""
    whole = names | {f"model.{own}" for own in (options_of(strategy) if strategy is not None else ())}
    for option in sorted(whole):
        if option.rpartition(".")[2] == name and option.count(".") < 2:
            return f"; did you mean {option}"
    return did_you_mean(name, _children(names, []), listing=False)


def _no_class(line: str, option: str, chosen: str, base: str, arguments: Sequence[str]) -> str | None:
    """Say what is wrong with the class that was named; None where the line says nothing of that."""
    kind = class_at(base) if base else None
    concrete = _concrete(kind) if inspect.isclass(kind) and kind.__module__ != "builtins" else {}
    where = f"`{option}`{place(option, arguments, chosen)}"
    if match := ALIEN.search(line):
        article, found = "an" if match[1][0] in "AEIOU" else "a", class_at(chosen)
        what = "does not subclass it" if inspect.isclass(found) else f"is of type {type(found).__name__}"
        return f"{where} must be {article} {match[1]}, but {chosen} {what}; {_way(chosen, concrete)}."
    if ABSTRACT.search(line):
        lacking = ", ".join(sorted(getattr(class_at(chosen), "__abstractmethods__", ())))
        way = f", without {lacking}; write it, or" if lacking else ";"
        return (
            f"{where} must be a class that can be built, but {chosen} is abstract{way} name one of {_list(concrete)}."
        )
    own = concrete.get(chosen.rpartition(".")[2])
    if match := NO_NAME.search(line):
        if own and f"{match[1]}.{match[2]}" != chosen:
            return f"{where} must lead to a class, but there is no module '{match[1]}.{match[2]}'; did you mean {own}."
        members = inspect.getmembers(import_module(match[1]), inspect.isclass)
        above = kind if concrete and inspect.isclass(kind) else object
        found = [name for name, it in members if issubclass(it, above) and not inspect.isabstract(it)]
        near = did_you_mean(match[2], found, f"{match[1]}.", listing=False)
        return f"{where} must lead to a class, but {match[1]} defines no {match[2]}{near}."
    if match := NO_MODULE.search(line):
        what = f"there is no module '{match[1]}'; did you mean {own}" if own else no_module(match[1])
        return f"{where} must lead to a class, but {what}."
    if (match := NO_CLASS.search(line)) and concrete:
        like = nearest(match[1], concrete)
        way = f"there are {_list(concrete)}" if like is None else f"did you mean {_named(like, concrete)}"
        return f"{where} must be the name or dotted path of a class, got {match[1]}; {way}."
    return None


def _concrete(base: type) -> dict[str, str]:
    """Return name and path of the public classes that descend from another and can be built."""
    kinds = [own for own in subclasses(base) if own is not base and not own.__name__.startswith("_")]
    return {own.__name__: f"{own.__module__}.{own.__name__}" for own in kinds}


def _way(chosen: str, concrete: Mapping[str, str]) -> str:
    """Return the way out for a class that will not do: one like it in the same module of the user's, or those that ship."""
    module, _, name = chosen.rpartition(".")
    near = nearest(name, [own for own, path in concrete.items() if path == f"{module}.{own}"])
    return f"did you mean {module}.{near}" if near else f"name one of {_list(concrete)}"


def _named(name: str, concrete: Mapping[str, str]) -> str:
    """Return how to name a class: ours by its name, one of the user's by its dotted path."""
    return name if concrete[name].startswith(OURS) else concrete[name]


def _list(concrete: Mapping[str, str]) -> str:
    """List the classes that ship; those of the user's own module are no choice for others."""
    names = sorted(own for own, path in concrete.items() if path.startswith(OURS))
    return ", ".join([*names, "or a class of your own by its dotted path"]) if names else "its subclasses"


def _options(parser: ArgumentParser) -> set[str]:
    """Return the options of a parser, and what stands before their dots."""
    keys = [key.split(".") for key in parser.get_defaults().keys()]  # a namespace, not a mapping
    return {".".join(parts[:number]) for parts in keys for number in range(1, len(parts) + 1)}


def _children(names: set[str], known: Sequence[str]) -> set[str]:
    """Return the names one level below an option."""
    above = "".join(f"{own}." for own in known)
    return {name[len(above) :].partition(".")[0] for name in names if name.startswith(above)}


def _given(message: str) -> str:
    """Return the class path that was given, or all that was given."""
    given = re.findall(r"Given value: (.*)", message)
    match = re.search(r"'class_path': '([^']+)'", given[-1]) if given else None
    return match[1] if match else given[-1] if given else "what was named"
