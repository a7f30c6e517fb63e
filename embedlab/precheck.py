"""What of a command line is answered before torch is imported: its files, and the names at its top level.

All else is for the parser itself, which needs the classes and so takes seconds.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from embedlab.errors import UserError, did_you_mean
from embedlab.yaml_files import read_value, read_yaml, texts

__all__ = ["check", "check_file", "check_values"]

TOP: Final = (
    *("model", "data", "trainer", "seed_everything", "ckpt_path", "run_dir", "study", "label"),
    *("print_config", "config", "help", "verbose", "return_predictions", "weights_only"),
)
SECTIONS: Final = ("model", "data", "trainer")
OF_A_CLASS: Final = ("class_path", "init_args", "dict_kwargs")
# Where an empty text would be taken for the working directory, or for nothing at all.
NAMING: Final = re.compile(
    r"run_dir|ckpt_path|model|(.*\.)?(backbone\.name|class_path)|trainer\.(profiler|accelerator|strategy)|data\.(.*\.)?path"
)
SOURCE: Final = re.compile(r"data\.(train|validation|predict|test(\.[^.]+)?)")
SET_BY_RUNS: Final = {  # what they set it to, and why
    "trainer.default_root_dir": (None, "a run keeps everything in one folder; set `run_dir`"),
    "trainer.num_sanity_val_steps": (0, "a run checks its data by itself; delete it"),
    "trainer.use_distributed_sampler": (False, "a run shares rows out by itself; delete it"),
}
NEAR: Final = 0.7  # of 1, from which on a name is taken for another one mistyped
MOVED: Final = {
    "embedlab.callbacks.": "embedlab.training.callbacks.",
    "embedlab.contrastive.": "embedlab.strategies.contrastive.",
    "embedlab.layerwise.": "embedlab.strategies.freeze_network.",
    "embedlab.prompts.": "embedlab.strategies.sgpt_prompts.",
    "embedlab.tokens.": "embedlab.packing.",
    "embedlab.tuning.": "embedlab.backbone.tuning.",
}


def check(arguments: Sequence[str]) -> None:
    """Check the options of fit, validate, test or predict as far as that needs no class.

    Args:
        arguments: What was typed after the subcommand.

    Raises:
        UserError: At the first file that is missing or malformed, or name that certainly is none.
    """
    words = list(arguments)
    while words:
        name, equals, value = words.pop(0).partition("=")
        if name not in ("-c", "--config"):
            if name.startswith("--"):
                option = name.removeprefix("--")
                _check_name(option.partition(".")[0].removesuffix("+"), "")
                typed = value if equals else words[0] if words and not words[0].startswith("--") else None
                if typed is not None:
                    _check_typed(option, typed)
            _check_places(value if equals else name, "")
            continue
        if not equals and words and not words[0].startswith("-"):
            equals, value = "=", words.pop(0)
        if not equals:
            raise UserError(f"`{name}` must be followed by a YAML file, got nothing; name one.")
        check_file(Path(value))


def _check_typed(option: str, text: str) -> None:
    """Refuse what was typed for an option and certainly cannot be meant."""
    value = read_value(text) if text else text
    if option in SECTIONS and text[:1] in ("{", "[") and isinstance(value, str):
        raise UserError(
            f"`{option}` must be YAML such as '{{a: 1}}', got {text!r}; close the bracket, and quote it all."
        )
    if option == "model" and isinstance(value, dict):
        _check_model(value, "")
    if option == "model" and text.endswith((".yaml", ".yml")) and "model" in read_yaml(Path(text)):
        raise UserError(f"`model` must be a class, or the file of one alone, got {text} with more; write -c {text}.")
    check_values(option, value, "")


def check_file(path: Path) -> None:
    """Check a YAML file of options.

    Raises:
        UserError: If it is missing or malformed, or holds a name that certainly is none.
    """
    content = read_yaml(path)
    place = f" in {path}"
    if content.keys() & {"strategies", "protocol"} and not content.keys() & {*SECTIONS}:
        raise UserError(f"{path} must hold options of a run, but is a study; give it to `embedlab compare` instead.")
    for key in content:
        _check_name(key, place)
    if all(value is None for value in content.values()):
        raise UserError(f"{path} must hold options, got {'only null' if content else 'none'}; leave it out.")
    for section in SECTIONS:
        if section in content and content[section] is None:
            raise UserError(f"`{section}`{place} must hold options, got null; delete that line.")
    if "model" in content:
        _check_model(content["model"], place)
    for option, value in content.items():
        check_values(option, value, place, has_folder=content.get("run_dir") is not None)
    for text in texts(content):
        _check_places(text, place)


def check_values(option: str, value: Any, place: str, has_folder: bool = False) -> None:
    """Refuse an empty value where a name is needed, and what a run sets itself.

    Args:
        option: Dotted name.
        value: Its value; of a mapping, that of each option in it.
        place: Which file it stands in, for messages.
        has_folder: Whether that is the configuration of a run that was made, which holds all of these.

    Raises:
        UserError: If so.
    """
    if isinstance(value, dict):
        for key, own in value.items():
            check_values(option if key == "init_args" else f"{option}.{key}", own, place, has_folder)
    elif value == "" and NAMING.fullmatch(option):
        raise UserError(f"`{option}`{place} must have a value, got an empty text; give one, or leave it out.")
    elif isinstance(value, str) and SOURCE.fullmatch(option) and not value.endswith((".yaml", ".yml")):
        way = f"{{path: {value}}}" if option != "data.test" else f"{{NAME: {{path: {value}}}}}"
        raise UserError(f"`{option}`{place} must be a mapping with options of a source, got {value!r}; write {way}.")
    elif (own := SET_BY_RUNS.get(option)) is not None and value not in (None, own[0]) and not has_folder:
        raise UserError(f"`{option}`{place} must be left out, got {value}, as {own[1]}.")


def _check_model(model: Any, place: str) -> None:
    """Refuse a strategy that is written otherwise than as a class and its options."""
    if isinstance(model, str):
        return
    if not isinstance(model, dict):
        what = "a list" if isinstance(model, list) else str(model)
        raise UserError(f"`model`{place} must be a mapping with `class_path` and `init_args`, got {what}; write them.")
    for key in model:
        if key not in OF_A_CLASS:
            near = did_you_mean(key, OF_A_CLASS, listing=False) or "; move it there"
            raise UserError(f"`model.{key}`{place} must stand under `init_args`, as an option of the strategy{near}.")
    if "class_path" in model and not isinstance(model["class_path"], str):
        came = "null" if model["class_path"] is None else model["class_path"]
        raise UserError(f"`model.class_path`{place} must be the dotted path of a class, got {came}; write one.")
    if "init_args" in model and not isinstance(model["init_args"], dict):
        came = "null" if model["init_args"] is None else model["init_args"]
        raise UserError(f"`model.init_args`{place} must be a mapping from options to values, got {came}; leave it out.")


def _check_name(key: str, place: str) -> None:
    """Refuse what is nearly, but not, a name of the top level."""
    if key == "request":
        raise UserError(f"`request`{place} must be left out, as it is no longer an option; delete that line.")
    if not key.replace(".", "").isidentifier():
        way = "write a blank after the colon" if ":" in key else "see embedlab fit --help"
        raise UserError(f"`{key or '--'}`{place} must be the name of an option; {way}.")
    near = difflib.get_close_matches(key, TOP, n=1, cutoff=NEAR)
    if near and key not in TOP:
        raise UserError(f"`{key}`{place} must be one of this program's options; did you mean {near[0]}.")


def _check_places(text: str, place: str) -> None:
    """Refuse the name of a class or function that has moved."""
    for old, new in MOVED.items():
        if text.startswith(old):
            raise UserError(f"`{text}`{place} must be written {new}{text.removeprefix(old)}, as it has moved.")
