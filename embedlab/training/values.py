"""One sentence for a value that the parser refuses: what is needed, what came, and the way out."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args, get_origin

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger

from embedlab.arguments import in_our_words
from embedlab.data import DataModule
from embedlab.errors import UserError, did_you_mean
from embedlab.strategies.base import EmbeddingStrategy
from embedlab.training.help import class_at, hints_of, parameters_of, path_of, shipped, types_of
from embedlab.training.user_code import no_module

__all__ = ["check_groups", "explain", "is_about_a_value", "needed"]

KEY: Final = re.compile(r'( *)(?:- )?Parser key "([^"]+)":')
CLASS: Final = re.compile(r"( *)(?:- )?Problem with given class_path '([^']+)':")
CAME: Final = (
    r"Got value: (.*)",
    r"Given value: (.*)",
    r"Unable to load config '(.*)'",
    r"Expected a dot import path string: (.*)",
    r"Expected a path but (.*) either not",
)
NESTED: Final = re.compile(r"NestedArg\(key='[^']*', val='?(.*?)'?\)")
MISSING: Final = re.compile(
    r"Requirement '([^']+)' not met|`?(\w+)`? nor `?\w+`? is available|No module named '([^']+)'"
)
REQUIRED: Final = re.compile(r"the following arguments are required: (\w+)")
BAD_NAME: Final = re.compile(r'(?:Empty nested key|Spaces not allowed in keys): "(.*)"')
UNTOLD: Final = re.compile(r"Expected '(\S+)' to be a function that returns \W*(?:class ')?(?:\w+\.)*(\w+)")
NUMBERED: Final = re.compile(r"(?:unrecognized arguments: --|NestedArg\(key=')(\d+)\.(?:init_args\.)?([\w.]+)")
ROOTS: Final = {
    "model": EmbeddingStrategy,
    "data": DataModule,
    "trainer": Trainer,
    "seed_everything": int,
    **dict.fromkeys(("run_dir", "study", "label", "ckpt_path"), str | None),
    "weights_only": bool | None,
}
PLAIN: Final = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
EACH: Final = "a list of which each is "
UNQUOTED: Final = re.compile(r"[-+\d.]+|true|false|{}", re.IGNORECASE)  # what YAML takes for no text
LONGEST: Final = 60  # characters of a value in a sentence
LISTED: Final = 12  # names in a sentence


@dataclass(frozen=True)
class _Refused:
    """Where in the parser's complaint the refused value is.

    Attributes:
        option: Its dotted name.
        hint: Its type, None where unknown.
        default: Its default, `inspect.Parameter.empty` where there is none.
        chosen: The class that was named for the option or for what stands around it.
        text: What is said about the value.
    """

    option: str
    hint: Any
    default: Any
    chosen: Any
    text: str


def is_about_a_value(message: str) -> bool:
    """Tell whether the parser's complaint about a name it does not know is in truth about a value.

    Args:
        message: What jsonargparse says: of a function that is not there, or of a number in place of a logger.
    """
    return "expects a function" in message or NUMBERED.search(message) is not None


def explain(message: str) -> str:
    """Turn the parser's complaint about a value into a sentence.

    Args:
        message: What jsonargparse says, on several lines.

    Returns:
        The argument, what is needed, what came and the way out.
    """
    refused = _find(message)
    came = _came(refused, message)
    absent = ""
    if (missing := MISSING.search(message)) and (came or "").startswith(f"'{missing[3]}"):
        absent = f"; {no_module(missing[3])}"
    elif missing:
        package = next(filter(None, missing.groups()))
        whose = getattr(refused.chosen, "__name__", "what was named")
        return (
            f"`{refused.option}` must be of what is installed, but {whose} needs {package}, which is not; install it, or "
            "name another class."
        )
    if match := UNTOLD.search(message):
        return (
            f"`{refused.option}` must be a function annotated `-> {match[2]}`, got '{match[1]}', which is not; write "
            f"`def {match[1].rpartition('.')[2]}(...) -> {match[2]}:`."
        )
    if match := NUMBERED.search(message):
        return (
            f"`{refused.option}.{match[1]}` must go without a number, as an option of a list is that of its last member; "
            f"write --{refused.option}.{match[2]}, or name the whole list."
        )
    if match := BAD_NAME.search(refused.text):
        return f"`{refused.option}` must be a mapping whose names are words, got {match[1]!r}; leave it out."
    if match := REQUIRED.search(refused.text):
        whose = getattr(refused.chosen, "__name__", "a run")
        option = f"{refused.option}.{match[1]}".lstrip(".")
        return f"`{option}` must be given, as {whose} needs it, got none; add --{option}."
    if refused.hint is None and not KEY.search(message):
        return f"{in_our_words(' '.join(message.split()).rstrip('.'))}; see embedlab fit --help."
    return _sentence(refused.option, refused.hint, refused.default, came, absent)


def check_groups(config: Any) -> None:
    """Refuse null where a value is needed, and a list or a word for a group of options: the parser lets them pass.

    Args:
        config: The configuration of a subcommand.

    Raises:
        UserError: If so; the sentence names the options there are.
    """
    for section in ("trainer", "data"):
        _check_group(section, ROOTS[section], config.get(section))
    if (model := config.get("model")) is not None:
        _check_group("model", class_at(model.class_path), model.get("init_args") or {})


def _check_group(option: str, kind: Any, value: Any) -> None:
    if isinstance(value, list | str | int | float):
        raise UserError(_sentence(option, kind, inspect.Parameter.empty, _shown(value)))
    parameters = parameters_of(kind)
    for name, hint in hints_of(kind).items():
        if value is None or name not in value or name not in parameters:
            continue
        default, takes_none = parameters[name].default, {Any, object, type(None)} & {*types_of(hint)}
        if value[name] is None and default is not None and not takes_none:
            raise UserError(_sentence(f"{option}.{name}", hint, default, "null"))
        is_group = inspect.isclass(hint) and hint.__module__.startswith("embedlab.") and not shipped(hint)
        if option == "model" and is_group:
            _check_group(f"{option}.{name}", hint, value[name])


def _sentence(option: str, hint: Any, default: Any, came: str | None, way: str = "") -> str:
    """Compose the sentence."""
    what = "a value of another kind" if hint is None else needed(hint)
    choices = _named(hint) | {
        str(own): str(own) for kind in types_of(hint) if get_origin(kind) is Literal for own in get_args(kind)
    }
    if not way and came is not None and (word := came.strip("'").rpartition(".")[2]):
        near = did_you_mean(word, choices, listing=False).removeprefix("; did you mean ")
        way = f"; did you mean {choices[near]}" if near else ""
    inner = [own for kind in types_of(hint) for own in (kind, *get_args(kind))]
    if not way and came is not None and str in inner and UNQUOTED.fullmatch(came):
        way = f"; quote it, as '{came}'" if came != "{}" else """; quote it for YAML, as '"{}"'"""
    if not way and isinstance(default, int | float | str | type(None)):
        way = f"; leave it out for the default, {_word(default)}"
    return f"`{option}` must be {what}, got {came or 'something else'}{way or '; see embedlab fit --help'}."


def needed(hint: Any) -> str:
    """Say in words what a type takes.

    >>> needed(int | None), needed(Literal["a", "b"])
    ('a whole number or null', 'one of a, b')
    """
    members = types_of(hint)
    literals = [_word(value) for own in members if get_origin(own) is Literal for value in get_args(own)]
    words = [f"one of {', '.join(dict.fromkeys(literals))}"] if literals else []
    words += [_one(own) for own in members if get_origin(own) is not Literal and own is not type(None)]
    words.sort(key=lambda own: own.startswith(EACH))  # so that it can say "a list of them"
    words = ["a list of them" if own.startswith(EACH) and own.removeprefix(EACH) in words else own for own in words]
    if "a number" in words and "a whole number" in words:
        words.remove("a whole number")
    words += ["null"] if type(None) in members else []
    return " or ".join(dict.fromkeys(words))


def _one(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if hint in PLAIN:
        return PLAIN[hint]
    if origin is Callable:
        names = ", ".join(_named(hint).values())
        return (
            f"a function by its dotted path, such as {names} or your own" if names else "a function by its dotted path"
        )
    if origin is tuple:
        return (
            f"[{', '.join(needed(own) for own in inner if own is not Ellipsis)}{', ...' if Ellipsis in inner else ''}]"
        )
    if origin in (list, Iterable, Sequence):
        return f"{EACH}{needed(inner[0])}"
    if origin in (dict, Mapping):
        return f"a mapping from names to values, each {needed(inner[1])}"
    if classes := [*_named(hint).values()]:
        return f"a class, such as {', '.join(classes[:LISTED])}"
    if inspect.isclass(hint) and hint.__module__.startswith(("embedlab.", "lightning.")):
        options = list(parameters_of(hint))
        return f"a mapping with options among {', '.join(options[:LISTED])}{', ...' if len(options) > LISTED else ''}"
    return f"a {getattr(hint, '__name__', 'value of another kind')}"


def _named(hint: Any) -> dict[str, str]:
    """Return how a configuration names the functions or classes that an argument takes, by their own names."""
    short = get_origin(hint) is not type  # of which only a dotted path will do
    return {own.__name__: own.__name__ if short and inspect.isclass(own) else path_of(own) for own in shipped(hint)}


def _find(message: str) -> _Refused:
    """Follow the complaint to the innermost option it names."""
    stack: list[tuple[int, str, str]] = []  # indentation, "key" or "class", name
    best: list[tuple[int, str, str]] = []
    lines = message.splitlines()
    first = 0
    for number, line in enumerate(lines):
        for kind, pattern in (("key", KEY), ("class", CLASS)):
            if match := pattern.match(line):
                depth = len(match[1])
                while stack and stack[-1][0] >= depth:
                    stack.pop()
                if stack and stack[-1][1:] == (kind, match[2]):  # said twice
                    continue
                stack.append((depth, kind, match[2]))
                if sum(own[1] == "key" for own in stack) > sum(own[1] == "key" for own in best):
                    best, first = list(stack), number
                elif stack[: len(best)] == best:
                    best = list(stack)
    depth = max((own[0] for own in best if own[1] == "key"), default=0)
    after = [line for line in lines[first + 1 :] if line.strip()]
    end = next((i for i, line in enumerate(after) if len(line) - len(line.lstrip()) < depth), len(after))
    return _resolve(best, "\n".join([*lines[first : first + 1], *after[:end]]))


def _resolve(path: Sequence[tuple[int, str, str]], text: str) -> _Refused:
    """Look up the type of the option at the end of a path of keys and classes."""
    parts: list[str] = []
    hint: Any = None
    default: Any = inspect.Parameter.empty
    chosen: Any = None
    for _, kind, name in path:
        if kind == "class":
            chosen = class_at(name)
            if not parts:
                parts = [_section(chosen)]
            continue
        for part in name.split("."):
            if not parts:
                hint = ROOTS.get(part)
            else:
                own = chosen if chosen is not None else next((t for t in types_of(hint) if inspect.isclass(t)), None)
                if any(get_origin(t) is dict for t in types_of(hint)):
                    parts.append("NAME")
                hint, default, chosen = hints_of(own).get(part), parameters_of(own).get(part), None
                default = inspect.Parameter.empty if default is None else default.default
            parts.append(part)
    return _Refused(".".join(parts), hint, default, chosen, text)


def _section(kind: Any) -> str:
    """Return the option that a class was built for."""
    for base, option in ((Logger, "trainer.logger"), (Callback, "trainer.callbacks"), (DataModule, "data")):
        if inspect.isclass(kind) and issubclass(kind, base):
            return option
    return "model"


def _came(refused: _Refused, message: str) -> str | None:
    """Return the value that came, as it is shown; None where the complaint does not tell."""
    for text in (refused.text, message.splitlines()[-1]):
        for pattern in CAME:
            if match := re.search(pattern, text):
                value = nested[1] if (nested := NESTED.fullmatch(match[1])) else match[1]
                if "Namespace(" not in value and "<" not in value:
                    return _shown(value)
    return None


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    if text in ("None", "True", "False"):
        return "null" if text == "None" else text.lower()
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    bare = not isinstance(value, str) or re.fullmatch(r"-?[\d.]+|[\[{'].*", text)
    return text if bare else repr(text)


def _word(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
