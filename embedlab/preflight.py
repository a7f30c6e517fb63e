"""Checks of a command line that need no torch, so that a slip of the pen is answered at once.

Only what is certainly wrong is refused: a missing file, malformed YAML, an option nobody has, a class that
does not exist. Values, types and whatever cannot be read off the source are left to the real parser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from embedlab import signatures
from embedlab.errors import UserError
from embedlab.signatures import ClassInfo
from embedlab.yaml_files import hint, read_value, read_yaml

__all__ = ["Layer", "check", "layers_of", "strategy_of"]

TOP: Final = (
    *("model", "data", "trainer", "seed_everything", "ckpt_path", "run_dir", "study", "label", "request"),
    *("print_config", "config", "help", "verbose", "return_predictions", "weights_only"),
)
DATA: Final = "embedlab.data.DataModule"
TRAINER: Final = "lightning.pytorch.Trainer"
FILES: Final = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Layer:
    """Options that came together: a file, or one option of the command line.

    Args:
        place: Where they stand, for messages: " in FILE", or nothing.
        content: The options, nested as in YAML.
    """

    place: str
    content: Mapping[str, Any]


def check(arguments: Sequence[str]) -> None:
    """Check the options of fit, validate, test or predict.

    Args:
        arguments: What was typed after the subcommand.

    Raises:
        UserError: At the first thing that is certainly wrong.
    """
    if any(own in ("-h", "--help") or own.partition("=")[0].endswith(".help") for own in arguments):
        return
    layers = layers_of(arguments)
    for layer in layers:
        for key in layer.content:
            if key not in TOP:
                raise UserError(f"`{key}`{layer.place} must be one of this program's options{_whose(key, layers)}.")
    for section, path in (("data", DATA), ("trainer", TRAINER)):
        info = _find_ours(path)
        for layer in layers:
            if info is not None and isinstance(content := layer.content.get(section), Mapping):
                _check_options(content, info, section, layer.place)
    _check_model(layers)


def layers_of(arguments: Sequence[str]) -> list[Layer]:
    """Return the options of a command line in the order they are laid over each other.

    Args:
        arguments: What was typed after the subcommand.

    Returns:
        One layer per file and per option.

    Raises:
        UserError: If a file is missing or malformed.
    """
    layers = []
    words = list(arguments)
    while words:
        name, equals, value = words.pop(0).partition("=")
        if name != "-c" and not name.startswith("--"):
            continue  # the real parser knows what to make of it
        if not equals and words and not words[0].startswith("--") and words[0] != "-c":
            equals, value = "=", words.pop(0)
        if name in ("-c", "--config"):
            if not equals:
                raise UserError(f"`{name}` must be followed by a YAML file, got nothing.")
            layers.append(Layer(f" in {value}", read_yaml(Path(value))))
            continue
        content: Any = read_value(value) if equals else None
        for part in reversed(name.removeprefix("--").split(".")):
            content = {part.removesuffix("+"): content}
        layers.append(Layer("", content))
    return layers


def strategy_of(layers: Sequence[Layer]) -> ClassInfo | None:
    """Return the strategy class that layers end up with.

    Raises:
        UserError: If none is named, or one that does not exist.
    """
    named = [(layer, path) for layer in layers if (path := _class_of(layer))]
    if not named:
        raise UserError(
            "`model` must name a strategy, got none; give -c configs/strategies/NAME.yaml, or --model with "
            f"the dotted path of a class of your own or one of {', '.join(signatures.shipped())}."
        )
    return _strategy(*named[-1])


def _class_of(layer: Layer) -> str | None:
    """Return the class path that a layer gives the model."""
    model = layer.content.get("model")
    if isinstance(model, str) and model.endswith(FILES):
        model = read_yaml(Path(model))
    path = model.get("class_path") if isinstance(model, Mapping) else model
    return str(path) if path is not None else None


def _strategy(layer: Layer, path: str) -> ClassInfo | None:
    """Find the strategy class that a layer names."""
    try:
        info = signatures.find(path)
    except UserError as error:
        raise UserError(f"`model`{layer.place}: {error}") from error
    if info is not None and not info.is_strategy:
        raise UserError(f"`model`{layer.place} must be an EmbeddingStrategy, but {path} does not subclass it.")
    if info is not None and info.abstract:
        raise UserError(f"`model`{layer.place} must be a strategy that can be built, but {path} is abstract.")
    return info


def _check_model(layers: Sequence[Layer]) -> None:
    """Check what each layer gives the model against the class that stands then."""
    named = [_strategy(layer, path) if (path := _class_of(layer)) else None for layer in layers]
    strategy_of(layers)
    # What comes before any class is named waits for the first one.
    standing = next(info for layer, info in zip(layers, named, strict=True) if _class_of(layer))
    for layer, info in zip(layers, named, strict=True):
        standing = info if _class_of(layer) else standing
        if standing is not None and isinstance(model := layer.content.get("model"), Mapping):
            _check_options(_flat(model), standing, "model", layer.place)


def _flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `init_args` flat: `model.lr` is short for `model.init_args.lr`."""
    inner = content.get("init_args")
    own = {key: value for key, value in content.items() if key not in ("class_path", "init_args", "dict_kwargs")}
    return {**own, **(inner if isinstance(inner, Mapping) else {})}


def _check_options(content: Mapping[str, Any], info: ClassInfo, prefix: str, place: str) -> None:
    """Check options given to a class, and to the classes behind its arguments."""
    for key, value in content.items():
        option = f"{prefix}.{key}"
        parameter = info.parameters.get(str(key))
        if parameter is None:
            if info.open:
                continue
            near = hint(str(key), info.parameters, f"{prefix}.")
            raise UserError(f"`{option}`{place} must be an option of {info.name}{near}.")
        if not isinstance(value, Mapping):
            continue
        below = signatures.nested(parameter)
        if isinstance(value.get("class_path"), str):
            try:
                chosen = signatures.find(value["class_path"]) if "." in value["class_path"] else None
            except UserError as error:
                raise UserError(f"`{option}`{place}: {error}") from error
            if chosen is not None:
                _check_options(_flat(value), chosen, option, place)
        elif below is not None and below.info.plain:
            for name, own in value.items() if below.keyed else [("", value)]:
                if isinstance(own, Mapping):
                    _check_options(_flat(own), below.info, f"{option}.{name}".rstrip("."), place)


def _find_ours(path: str) -> ClassInfo | None:
    """Return a class of this program or of Lightning; None where it cannot be read."""
    try:
        return signatures.find(path)
    except UserError:
        return None  # laid out otherwise than expected: no reason to refuse what the user typed


def _whose(key: str, layers: Sequence[Layer]) -> str:
    """Return the end of the sentence on an unknown option: where it belongs, or what is like it."""
    for section, path in (("trainer", TRAINER), ("data", DATA)):
        info = _find_ours(path)
        if info is not None and key in info.parameters:
            return f"; did you mean {section}.{key}"
    named = [(layer, name) for layer in layers if (name := _class_of(layer))]
    info = _strategy(*named[-1]) if named else None
    if info is not None and key in info.parameters:
        return f"; did you mean model.{key}"
    return hint(key, TOP)
