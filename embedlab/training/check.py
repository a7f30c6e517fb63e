"""Check the strategies of a study: each goes the way of a run up to where that would begin.

So its configuration is judged by the parser itself, its data are read, and its identity is what the run will find.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from embedlab.data import DataModule
from embedlab.errors import UserError
from embedlab.strategies.base import Embedder, EmbeddingStrategy
from embedlab.training.cli import RunCLI
from embedlab.training.complaints import options_of, strategy_of
from embedlab.training.identity import identify
from embedlab.training.start import prepare, run
from embedlab.training.typed import as_typed
from embedlab.yaml_files import write_value

__all__ = ["check"]


def check(strategies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Check strategies of a study.

    Args:
        strategies: For each, the `files` that it and the study name, the `backbone` file or None, overrides for every
            run (`shared`) and for this strategy (`own`) by dotted option, its `seeds`, and the `places` of a run as
            typed: folder, study and label.

    Returns:
        For each, the `files` and `overrides` that apply, the latter also as the `content` of a YAML file, `identities`
        by seed, the `wish` of its features, whether it `embeds`, and `faults`.
    """
    prepare()
    read: dict[str, DataModule] = {}
    return [_answer(wanted, read) for wanted in strategies]


def _answer(wanted: Mapping[str, Any], read: dict[str, DataModule]) -> dict[str, Any]:
    files, overrides, faults = _applying(wanted)
    answer: dict[str, Any] = {"files": files, "overrides": overrides, "faults": faults}
    answer |= {"content": {}, "identities": {}, "wish": None, "embeds": True}
    try:
        found = run(lambda: _Check(files, overrides, wanted, read))
    except _FaultsError as error:
        faults += error.faults
    except UserError as error:
        faults.append(str(error))
    except (Exception, SystemExit) as error:  # of a class of the user's own, which may raise anything
        cause = error.__cause__ or error
        faults.append(f"{type(cause).__name__}: {' '.join(str(cause).split())}")
    else:
        faults += found.faults
        answer |= {"content": found.content, "identities": found.identities, "wish": found.wish, "embeds": found.embeds}
    return answer


def _applying(wanted: Mapping[str, Any]) -> tuple[list[str], dict[str, Any], list[str]]:
    """Return the files and overrides that are for this strategy, and overrides that are not as faults."""
    files, shared, faults = list(wanted["files"]), dict(wanted["shared"]), list[str]()
    kind = strategy_of(_words(files))
    if kind is None:  # which the parser will say
        return files, dict(sorted({**shared, **wanted["own"]}.items())), faults
    options = options_of(kind)
    if wanted["backbone"] is not None and "backbone" in options:
        files.append(wanted["backbone"])
    for key in list(shared):
        section, _, option = key.partition(".")
        name = option.partition(".")[0].removesuffix("+")
        if section == "model" and name not in options:
            del shared[key]
            if name != "backbone":
                faults.append(
                    f"`{key}` for every run must be an option of every strategy, but {kind.__name__} has none of that "
                    "name; give it under the `overrides` of those it is for."
                )
    return files, dict(sorted({**shared, **wanted["own"]}.items())), faults


class _FaultsError(UserError):
    """Several faults of one configuration."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


class _Check(RunCLI):
    """A run that does not begin.

    Args:
        files: YAML files.
        overrides: By dotted option.
        wanted: See `check`.
        read: Data read before, by their configuration.
    """

    def __init__(
        self,
        files: Sequence[str],
        overrides: Mapping[str, Any],
        wanted: Mapping[str, Any],
        read: dict[str, DataModule],
    ) -> None:
        self.overrides, self.seeds, self.read = overrides, wanted["seeds"], read
        self.content: dict[str, Any] = {}
        self.identities: dict[int, str] = {}
        self.wish: tuple[str, dict[str, Any]] | None = None
        self.embeds = True
        self.faults: list[str] = []
        super().__init__(["fit", *_words(files), "--seed_everything", str(self.seeds[0]), *wanted["places"]])

    def parse(self, arguments: Sequence[str]) -> Namespace:
        """Parse with the overrides, as a file that means what they would if they were typed."""
        if not self.overrides:
            return super().parse(arguments)
        try:
            typed = super().parse([*arguments, *_typed(self.overrides)])
        except UserError as error:
            raise _FaultsError(self._one_by_one(arguments) or [str(error)]) from None
        with tempfile.TemporaryDirectory() as folder:
            return self._as_file(arguments, typed, Path(folder) / "overrides.yaml")

    def _one_by_one(self, args: Sequence[str]) -> list[str]:
        """Return what is wrong with the files, or else with each override by itself."""
        faults = []
        for more in [[], *(_typed({key: value}) for key, value in self.overrides.items())]:
            try:
                super().parse([*args, *more])
            except UserError as error:
                faults.append(str(error))
                if not more:
                    break
        return faults

    def _as_file(self, args: Sequence[str], typed: Namespace, file: Path) -> Namespace:
        """Parse with the overrides in a file.

        A file replaces a dictionary or list where a typed option changes a member of it; where that makes a difference,
        the whole argument is written as it comes out.
        """
        parse, wanted = super().parse, _without_files(typed)

        def filed(content: Mapping[str, Any]) -> Namespace | None:
            file.write_text(yaml.safe_dump(content, sort_keys=False))
            try:
                found = parse([*args, "-c", str(file)])
            except UserError:
                return None
            return found if _without_files(found) == wanted else None

        self.content = _nested(self.overrides)
        if (found := filed(self.content)) is not None:
            return found
        plain = self.plain(typed)
        for section, name in {tuple(key.split(".")[:2]) for key in self.overrides if "." in key}:
            here, there = self.content[section], plain[section]
            if section == "model":
                here, there = here["init_args"], there["init_args"]
            here.pop(name)
            here[name.removesuffix("+")] = there[name.removesuffix("+")]
        if (found := filed(self.content)) is not None:
            return found
        raise UserError(
            f"`overrides` must be such as a YAML file can hold, got {', '.join(self.overrides)}; write what they change into "
            "the strategy's own file."
        )

    def after_instantiate_classes(self) -> None:
        """Read the data and the decoder's configuration."""
        self.datamodule = self.read.setdefault(repr(self.config.fit.data), self.datamodule)
        for step in (self.check_data, self.check_decoder):
            try:
                step()
            except UserError as error:
                self.faults.append(as_typed(str(error), self.model_options))

    def fit(self, model: EmbeddingStrategy, datamodule: DataModule, **arguments: Any) -> None:
        """Tell what the run of each seed would be, instead."""
        if not self.faults:
            config = self.plain(self.config)
            self.identities = {
                seed: identify({**config, "seed_everything": seed}, model, datamodule, self.trainer).run
                for seed in self.seeds
            }
            self.embeds = isinstance(model, Embedder)
            self.wish = None if model.features is None else model.features.wish


def _without_files(config: Namespace) -> Namespace:
    """Leave out which files a configuration came from."""
    config = config.clone()
    config.fit.pop("config", None)
    return config


def _words(files: Sequence[str]) -> list[str]:
    return [word for file in files for word in ("-c", file)]


def _typed(overrides: Mapping[str, Any]) -> list[str]:
    return [f"--{key}={write_value(value)}" for key, value in overrides.items()]


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted options into the mapping that a YAML file holds.

    >>> _nested({"model.width": 3, "trainer.max_epochs": 1})
    {'model': {'init_args': {'width': 3}}, 'trainer': {'max_epochs': 1}}
    """
    tree: dict[str, Any] = {}
    for option, value in overrides.items():
        *parents, last = option.split(".")
        if option.startswith("model."):
            parents.insert(1, "init_args")
        place = tree
        for name in parents:
            if not isinstance(place.get(name), dict):
                place[name] = {}
            place = place[name]
        place[last] = value
    return tree
