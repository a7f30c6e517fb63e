"""A study: which strategies are compared, on what, with which seeds.

It is described by a YAML file, in which paths are relative to the file; what ships can be given by name:

    study: demo                       # runs go to runs/<study>/<label>/seed-<n>
    protocol: ../protocol.yaml        # what all runs share
    backbone: ../backbones/smollm2-135m.yaml
    seeds: [0, 1, 2]
    strategies:                       # label: file, or file with overrides
      tfidf: ../strategies/tfidf.yaml
      freeze:
        config: ../strategies/freeze.yaml
        overrides: {model.pretraining: null}
        seeds: [0]                    # of the seeds above; for what no seed changes
    overrides: {trainer.max_epochs: 1}    # for every run, but where a strategy sets the option, or a wider one
    retrieval:                        # sets that every finished run is measured on, see `embedlab.study.retrieval`
      scifact: {path: BeIR/scifact}
    rerank_top_k: 20                  # of BM25's best, for strategies without vectors
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from embedlab import configs, precheck, runs
from embedlab.errors import UserError, did_you_mean
from embedlab.study.retrieval_sets import TOP_K, RetrievalSet, read_sets, read_top_k
from embedlab.study.rules import SECTIONS, check_file, check_keys, check_override, check_seeds
from embedlab.yaml_files import read_yaml

__all__ = ["Strategy", "Study", "read_overrides", "read_seeds", "read_study"]

KEYS: Final = ("study", "protocol", "backbone", "seeds", "strategies", "overrides", "retrieval", "rerank_top_k")
OURS: Final = ("seed_everything", "run_dir", "study", "label", "config", "ckpt_path", "print_config")


@dataclass(frozen=True)
class Strategy:
    """One line of a study: a label, its configuration and what it sets differently.

    `seeds` are those of the study that it runs with; None is all of them.
    """

    label: str
    config: Path
    overrides: Mapping[str, Any]
    seeds: Sequence[int] | None = None


@dataclass(frozen=True)
class Study:
    """A study as its file describes it, with every path resolved; `typed` are overrides from the command line."""

    name: str
    protocol: Path
    backbone: Path | None
    seeds: Sequence[int]
    strategies: Sequence[Strategy]
    overrides: Mapping[str, Any]
    retrieval: Sequence[RetrievalSet] = ()
    rerank_top_k: int = TOP_K
    typed: Mapping[str, Any] = field(default_factory=dict)

    def with_typed(self, typed: Mapping[str, Any]) -> Study:
        """Lay typed overrides over those of the study and of its strategies."""
        own = [replace(strategy, overrides=_outdone(strategy.overrides, typed)) for strategy in self.strategies]
        return replace(self, overrides=_outdone(self.overrides, typed), strategies=own, typed=typed)

    def shared_with(self, strategy: Strategy) -> dict[str, Any]:
        """Return the overrides of every run that a strategy of its own leaves in force, sorted."""
        return dict(sorted({**_outdone(self.overrides, strategy.overrides), **self.typed}.items()))

    def seeds_of(self, strategy: Strategy) -> list[int]:
        """Return the seeds that a strategy runs with."""
        return [seed for seed in self.seeds if strategy.seeds is None or seed in strategy.seeds]

    def places(self, strategy: Strategy, seed: int, root: Path) -> list[str]:
        """Return the options that say where a run belongs."""
        folder = runs.run_folder(root, self.name, strategy.label, seed)
        return ["--run_dir", str(folder), "--study", self.name, "--label", strategy.label]


def read_study(path: Path) -> Study:
    """Read a study.

    Args:
        path: Its YAML file.

    Returns:
        The study.

    Raises:
        UserError: If anything in it cannot be as it stands.
    """
    content = read_yaml(path)
    for key in content:
        if key not in KEYS:
            raise UserError(f"`{key}` in {path} must be one of {', '.join(KEYS)}{_way(key, path)}.")
    name = path.stem if content.get("study") is None else content["study"]
    if isinstance(name, list | dict):
        raise UserError(f"`study` in {path} must be a name, got {name}; give one, or leave it out for {path.stem}.")
    name = str(name)
    runs.check_name(name, f"`study` in {path}")
    lines = content.get("strategies")
    if not isinstance(lines, Mapping) or not lines:
        raise UserError(
            f"`strategies` in {path} must be a mapping of at least one `label: config.yaml`, got {_shown(lines)}; write "
            "one so."
        )
    strategies = [_strategy(str(label), value, path) for label, value in lines.items()]
    folders: dict[str, str] = {}
    for strategy in strategies:
        # Some file systems know neither case nor how an accent is composed.
        other = folders.setdefault(unicodedata.normalize("NFC", strategy.label).casefold(), strategy.label)
        if other is not strategy.label:
            raise UserError(
                f"`strategies` in {path} must have labels that differ by more than case, got "
                f"{other!r} and {strategy.label!r}; rename one."
            )
    if content.get("protocol") is None:
        raise UserError(
            f"`protocol` in {path} must name the YAML file that all runs share, got none; `protocol: protocol` takes ours."
        )
    seeds = read_seeds(content.get("seeds", [0]), f"`seeds` in {path}")
    check_seeds({own.label: own.seeds for own in strategies}, seeds, str(path))
    return Study(
        name=name,
        protocol=_file(content["protocol"], "protocol", path),
        backbone=None if content.get("backbone") is None else _file(content["backbone"], "backbone", path),
        seeds=seeds,
        strategies=strategies,
        overrides=read_overrides(content.get("overrides") or {}, f"`overrides` in {path}"),
        retrieval=read_sets(content.get("retrieval"), path),
        rerank_top_k=read_top_k(content.get("rerank_top_k", TOP_K), path),
    )


def _strategy(label: str, value: Any, path: Path) -> Strategy:
    where = f"strategies.{label}"
    runs.check_name(label, f"each label of `strategies` in {path}")
    if isinstance(value, str):
        return Strategy(label, _file(value, where, path), {})
    if not isinstance(value, Mapping) or "config" not in value:
        raise UserError(
            f"`{where}` in {path} must be a YAML file, or a mapping with `config`, got {_shown(value)}; name a file."
        )
    check_keys(value, where, path)
    overrides = read_overrides(value.get("overrides") or {}, f"`{where}.overrides` in {path}")
    seeds = value.get("seeds")
    if seeds is not None:
        read_seeds(seeds, f"`{where}.seeds` in {path}")
    return Strategy(label, _file(value["config"], where, path), overrides, seeds)


def _file(value: Any, key: str, path: Path) -> Path:
    """Resolve a path, or the name of what ships, written in the study's file."""
    check_file(value, key, path)
    try:
        return configs.find(str(value), path.parent)
    except UserError as error:
        raise UserError(f"`{key}` in {path} (paths are relative to it): {error}") from error


def read_seeds(values: Any, where: str) -> list[int]:
    """Check seeds.

    Args:
        values: A list of numbers.
        where: Where they come from, for messages.

    Raises:
        UserError: If they are no list of distinct whole numbers.
    """
    if not isinstance(values, list) or not values:
        raise UserError(
            f"{where} must be a list of at least one seed, as in [0, 1, 2], got {_shown(values)}; give one."
        )
    for value in values:
        if type(value) is not int or not 0 <= value < 2**32:
            raise UserError(
                f"{where} must be whole numbers from 0 to 2^32 - 1, as in [0, 1, 2], got {_shown(value)}; write them so."
            )
    twice = [value for index, value in enumerate(values) if value in values[:index]]
    if twice:
        raise UserError(f"{where} must differ from each other, got {twice[0]} twice; leave one out.")
    return values


def read_overrides(values: Any, where: str) -> dict[str, Any]:
    """Check overrides.

    Args:
        values: Dotted option to value; `model`, `data` and `trainer` may hold mappings instead.
        where: Where they come from, for messages.

    Returns:
        Dotted option to value, sorted, so that a wider option comes before a part of it.

    Raises:
        UserError: If one of them is not theirs to set.
    """
    if not isinstance(values, Mapping):
        raise UserError(
            f"{where} must be a mapping such as {{trainer.max_epochs: 1}}, got {_shown(values)}; write it so."
        )
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).removeprefix("--")
        inner = value.items() if name in ("model", "data", "trainer") and isinstance(value, Mapping) else None
        for option, own in [(name, value)] if inner is None else [(f"{name}.{below}", own) for below, own in inner]:
            option = option.replace("model.init_args.", "model.", 1)
            if not all(option.split(".")):
                raise UserError(f"{where} must name an option such as trainer.max_epochs, got `{option}`; complete it.")
            if option in flat:
                raise UserError(
                    f"{where} must set `{option}` once, got {_shown(flat[option])} and {_shown(own)}; delete one."
                )
            flat[option] = own
    for key in flat:
        if key in OURS:
            raise UserError(f"{where} must leave `{key}` alone, which the study sets itself; leave it out.")
        if key in ("model", "model.class_path"):
            raise UserError(f"{where} must leave `{key}` alone; another class is another strategy of the study.")
        check_override(key, where)
        precheck.check_values(key, flat[key], f" in {where.partition(' in ')[2]}" if " in " in where else "")
    return dict(sorted(flat.items()))


def _outdone(overrides: Mapping[str, Any], nearer: Mapping[str, Any]) -> dict[str, Any]:
    """Return overrides but for those of options that nearer ones set, or set a wider option of."""
    beaten = {key for key in overrides for own in nearer if key in (own, f"{own}+") or key.startswith(f"{own}.")}
    return {key: value for key, value in overrides.items() if key not in beaten}


def _shown(value: Any) -> str:
    """Return a value as YAML writes it, on one line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _way(key: str, path: Path) -> str:
    """Return the way out for a key that no study has."""
    if key in SECTIONS:
        return f"; `embedlab fit -c {path}` takes such a file"
    return did_you_mean(key, KEYS, listing=False) or "; leave it out"
