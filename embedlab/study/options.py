"""What is typed after `embedlab compare`: options, and overrides for every run."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from embedlab import runs
from embedlab.arguments import Parser
from embedlab.errors import UserError, did_you_mean
from embedlab.study.rules import check_spelling, check_words
from embedlab.study.spec import read_overrides, read_seeds
from embedlab.yaml_files import read_value

__all__ = ["chosen", "read_options"]

OVERRIDE: Final = re.compile(r"--((?:model|data|trainer)\..+)", re.DOTALL)


def read_options(arguments: Sequence[str]) -> tuple[Namespace, dict[str, Any]]:
    """Read what was typed.

    Returns:
        The options, and overrides for every run by dotted option.

    Raises:
        UserError: If any of it cannot be meant so.
    """
    parser = Parser(
        "embedlab compare",
        "Run every strategy and seed of a study and show one table; run it again to resume.",
        "overrides: KEY=VALUE or --KEY VALUE, such as trainer.max_epochs=1 or --data.train.limit 200\n"
        "paths:     protocol, backbone and strategies in STUDY.yaml are relative to that file; those in overrides,\n"
        "           such as data.train.path, and in the files it names are relative to the working directory\n"
        "example:   embedlab compare demo --seeds 0 1 2 --jobs 2",
    )
    parser.add_argument("study", metavar="STUDY.yaml", help="the study; a name such as demo for one that ships")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", default=[], help="override for every run")
    parser.add_argument("--override", metavar="KEY=VALUE", action="append", default=[], help="the same")
    parser.add_argument("--seeds", metavar="N", nargs="+", help="seeds instead of the study's: 0,1,2 or 0 1 2")
    parser.add_argument("--only", metavar="LABEL", nargs="+", action="extend", help="these strategies only: A,B or A B")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--rerun-older", action="store_true", help="make runs that older code finished again")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, and run nothing")
    parser.add_argument("--runs", metavar="DIR", type=Path, default=Path("runs"), help="default: runs")
    rest, pairs = _without_overrides(arguments)
    check_spelling(rest)
    options = parser.read(rest)
    if options.jobs < 1:
        raise UserError(
            f"`--jobs` must be at least 1, the number of runs at a time, got {options.jobs}; leave it out for one."
        )
    # An option that takes several words also takes the overrides behind it; no seed or label holds a `=`.
    several = [word for words in (options.seeds, options.only) for word in words or []]
    pairs = [*options.overrides, *options.override, *(word for word in several if "=" in word), *pairs]
    check_words(options.study, pairs)
    runs.check_folder(options.runs, "`--runs`")
    if options.seeds is not None:
        words = [part for word in options.seeds if "=" not in word for part in word.split(",") if part]
        options.seeds = read_seeds(
            [int(word) if word.isascii() and word.isdecimal() else word for word in words], "`--seeds`"
        )
    typed = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if not value.strip():
            raise UserError(f"`{key}` must be given a value, got none; write {key}=null for none, or {key}='\"\"'.")
        typed[key] = read_value(value)
    return options, read_overrides(typed, "An override")


def _without_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take overrides written as options out of a command line: the rest, and KEY=VALUE."""
    rest, pairs, words = list[str](), list[str](), list(arguments)
    while words:
        word = words.pop(0)
        match = OVERRIDE.fullmatch(word)
        if match is None:
            rest.append(word)
        elif "=" in word or not words:
            pairs.append(match[1])
        else:
            pairs.append(f"{match[1]}={words.pop(0)}")
    return rest, pairs


def chosen(typed: Sequence[str] | None, labels: Sequence[str]) -> Sequence[str]:
    """Return the labels to run.

    Args:
        typed: After `--only`; None is all.
        labels: Of the study.

    Raises:
        UserError: If one is none of them.
    """
    words = [word for word in typed or [] if "=" not in word]
    own = [label for word in words for label in _labels(word, labels)]
    for label in own:
        if label not in labels:
            raise UserError(f"`--only` must name a strategy of the study, got {label!r}{did_you_mean(label, labels)}.")
    return labels if typed is None else own


def _labels(word: str, labels: Sequence[str]) -> list[str]:
    """Split A,B; a label may hold a comma itself."""
    return [word] if word in labels else [part for part in word.split(",") if part] or [word]
