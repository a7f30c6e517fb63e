"""What of a command line is answered before torch is imported: its files, and the names at its top level.

All else is for the parser itself, which needs the classes and so takes seconds.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from embedlab.errors import UserError
from embedlab.yaml_files import read_yaml

__all__ = ["check", "check_file", "texts"]

TOP: Final = (
    *("model", "data", "trainer", "seed_everything", "ckpt_path", "run_dir", "study", "label"),
    *("print_config", "config", "help", "verbose", "return_predictions", "weights_only"),
)
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
                _check_name(name.removeprefix("--").partition(".")[0].removesuffix("+"), "")
            _check_places(value if equals else name, "")
            continue
        if not equals and words and not words[0].startswith("-"):
            equals, value = "=", words.pop(0)
        if not equals:
            raise UserError(f"`{name}` must be followed by a YAML file, got nothing.")
        check_file(Path(value))


def check_file(path: Path) -> None:
    """Check a YAML file of options.

    Raises:
        UserError: If it is missing or malformed, or holds a name that certainly is none.
    """
    content = read_yaml(path)
    for key in content:
        _check_name(key, f" in {path}")
    for text in texts(content):
        _check_places(text, f" in {path}")


def _check_name(key: str, place: str) -> None:
    """Refuse what is nearly, but not, a name of the top level."""
    if key == "request":
        raise UserError(f"`request`{place} must be left out, as it is no longer an option; delete that line.")
    near = difflib.get_close_matches(key, TOP, n=1, cutoff=NEAR)
    if near and key not in TOP:
        raise UserError(f"`{key}`{place} must be one of this program's options; did you mean {near[0]}.")


def _check_places(text: str, place: str) -> None:
    """Refuse the name of a class or function that has moved."""
    for old, new in MOVED.items():
        if text.startswith(old):
            raise UserError(f"`{text}`{place} must be written {new}{text.removeprefix(old)}, as it has moved.")


def texts(content: Any) -> Iterator[str]:
    """Yield every text in the content of a YAML file that is no key."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for own in content.values() if isinstance(content, dict) else content:
            yield from texts(own)
