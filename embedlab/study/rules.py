"""What a study and its command line may not ask for, each refused in one sentence."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from embedlab.errors import UserError, did_you_mean

__all__ = [
    "SECTIONS",
    "check_file",
    "check_keys",
    "check_override",
    "check_seeds",
    "check_some",
    "check_spelling",
    "check_words",
]

FOR_STRATEGY: Final = ("config", "overrides", "seeds")
SECTIONS: Final = ("model", "data", "trainer")


def check_spelling(words: Sequence[str]) -> None:
    """Refuse `--set`, which `embedlab report` has for something else.

    Raises:
        UserError: If it is there.
    """
    if any(word.partition("=")[0] == "--set" for word in words):
        raise UserError(
            "`--set` must be written --override KEY=VALUE here, or just KEY=VALUE, as `embedlab report --set` chooses a "
            "test set; write --override."
        )


def check_words(study: object, pairs: Sequence[str]) -> None:
    """Refuse what was typed after the study and is no override, such as a second study.

    Raises:
        UserError: If there is any.
    """
    for pair in pairs:
        if "=" in pair:
            continue
        if pair.endswith((".yaml", ".yml")):
            raise UserError(f"`STUDY.yaml` must be one file, got {study} and {pair}; compare them one after the other.")
        raise UserError(f"An override must be KEY=VALUE, got {pair!r}; give it a value, as in trainer.max_epochs=1.")


def check_override(key: str, where: str) -> None:
    """Refuse an override of something else than model, data and trainer.

    Raises:
        UserError: If it is one.
    """
    first, _, rest = key.partition(".")
    if first in SECTIONS:
        return
    if rest.partition(".")[0] in SECTIONS:
        raise UserError(
            f"{where} must begin with {', '.join(SECTIONS)}, got `{key}`; for one strategy write `{rest}` under "
            f"`strategies.{first}.overrides` in the study's file."
        )
    near = did_you_mean(first, SECTIONS, listing=False) or "; see embedlab fit --help"
    raise UserError(f"{where} must begin with {', '.join(SECTIONS)}, got `{key}`{near}.")


def check_keys(keys: Collection[object], where: str, path: object) -> None:
    """Refuse what a strategy of a study cannot have.

    Raises:
        UserError: If there is anything of the kind.
    """
    for key in map(str, keys):
        if key == "backbone":
            raise UserError(
                f"`{where}.backbone` in {path} must be left out, as a study has one decoder; set `model.backbone.name` under "
                f"`{where}.overrides`, or make a second study."
            )
        if key not in FOR_STRATEGY:
            near = did_you_mean(key, FOR_STRATEGY, listing=False) or "; leave it out"
            raise UserError(f"`{where}.{key}` in {path} must be config, overrides or seeds{near}.")


def check_file(value: object, key: str, path: object) -> None:
    """Refuse what is no single file.

    Raises:
        UserError: If it is none.
    """
    if not isinstance(value, str):
        raise UserError(
            f"`{key}` in {path} must be one YAML file, got {value!r}; name one, and compare others in other studies."
        )


def check_seeds(seeds: Mapping[str, Sequence[int] | None], those: Sequence[int], where: str) -> None:
    """Refuse seeds of a strategy that the study does not have, as they would never run.

    Args:
        seeds: Of each label; None is all of the study's.
        those: The study's.
        where: The file.

    Raises:
        UserError: If there are any.
    """
    for label, own in seeds.items():
        foreign = [seed for seed in own or [] if seed not in those]
        if foreign:
            raise UserError(
                f"`strategies.{label}.seeds` in {where} must be among the study's {list(those)}, got {foreign[0]}; add it to "
                "`seeds`, or leave it out."
            )


def check_some(jobs: Sequence[Any], seeds: Sequence[int], labels: Sequence[str]) -> None:
    """Refuse a choice of seeds and strategies that leaves nothing to run.

    Raises:
        UserError: If nothing is left.
    """
    if not jobs:
        raise UserError(
            f"`--seeds` must leave something to run, but {', '.join(labels)} run with none of {list(seeds)}; choose others, or "
            "leave it out."
        )
