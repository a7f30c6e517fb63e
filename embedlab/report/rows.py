"""Which runs make one row of a table: those that differ in their seed and in nothing else.

A row is a study, a label, and the settings under which its runs were made, so that

- runs that share a label but not the settings are two rows, marked, with a note that names what differs;
- runs that share the settings but not the label or the study are two rows too: whoever named them apart wants to
  see them apart;
- where a run lies does not matter: seeds of one study that were run on two machines are one row;
- a seed that was run twice under the same settings counts once, as a copy says nothing new about seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from embedlab import runs
from embedlab.errors import UserError
from embedlab.runs.identity import SHOWN, content_hash
from embedlab.yaml_files import read_yaml, write_value

__all__ = ["Group", "Run", "config_of", "group_runs"]

# Of a resolved configuration, what tells runs of one row apart: the seed, names and places.
NOT_SETTINGS: Final = ("seed_everything", "run_dir", "study", "label", "request")
LISTED: Final = 4  # differences that a note names
LENGTH: Final = 60  # characters of a value in a note


@dataclass(frozen=True)
class Run:
    """One run folder as found.

    Args:
        folder: Where it is.
        study: The study it belongs to.
        label: What its strategy is called there.
        seed: Its seed; None if neither result nor path tells.
        state: queued, running, done, failed or interrupted; one whose process died has failed.
        error: Why it failed.
        result: Content of `result.json`; None unless done.
    """

    folder: Path
    study: str
    label: str
    seed: int | None
    state: runs.State
    error: str | None
    result: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """What it is called in lists."""
        return self.label if self.seed is None else f"{self.label}, seed {self.seed}"


@dataclass(frozen=True)
class Group:
    """The runs of one row.

    Args:
        label: What the row is called: the label, with a number where rows share it.
        study: Its study.
        results: Folder and result of the finished runs, one per seed, at least one.
        planned: Seeds there are, finished or not.
        notes: What a reader must know about how they came together.
    """

    label: str
    study: str
    results: Sequence[tuple[Path, Mapping[str, Any]]]
    planned: int
    notes: Sequence[str]


def group_runs(found: Sequence[Run]) -> list[Group]:
    """Put runs into the rows they belong to; a label of which nothing is finished has none."""
    labels: dict[tuple[str, str], list[Run]] = {}
    waiting: dict[tuple[str, str], list[Run]] = {}
    for run in found:
        (waiting if run.result is None else labels).setdefault((run.study, run.label), []).append(run)
    return [group for name, own in labels.items() for group in _groups_of_label(_rows(own), waiting.get(name, []))]


def _rows(finished: Sequence[Run]) -> list[list[Run]]:
    """Share the finished runs of one label out to rows, by what all seeds of a row share: the hash in the result.

    An older result has none. It joins the row whose configuration, data and decoder are its own, if there is just one.
    """
    alike: dict[str, set[str]] = {}  # likeness to hashes
    known = {run.folder: own for run in finished if (own := (run.result or {}).get("settings"))}
    if len(known) < len(finished):
        for run in finished:
            if run.folder in known:
                alike.setdefault(_likeness(run), set()).add(str(known[run.folder]))
    rows: dict[str, list[Run]] = {}
    for run in finished:
        settings = known.get(run.folder) or _likeness(run)
        same = alike.get(settings, set())
        rows.setdefault(next(iter(same)) if len(same) == 1 else str(settings), []).append(run)
    return list(rows.values())


def _groups_of_label(rows: Sequence[Sequence[Run]], waiting: Sequence[Run]) -> Iterator[Group]:
    """Give the groups of one label of one study."""
    for number, row in enumerate(rows, 1):
        first = row[0]
        seeds = {_seed(run) for run in row} | {_seed(run) for run in waiting if _belongs(run, row, len(rows) == 1)}
        kept, notes = _one_per_seed(row)
        if number > 1:
            notes.insert(0, f"differs from {first.label} (1) in {_differences(rows[0][0], first)}")
        yield Group(
            label=first.label if len(rows) == 1 else f"{first.label} ({number})",
            study=first.study,
            results=[(run.folder, run.result) for run in kept if run.result is not None],
            planned=len(seeds),
            notes=notes,
        )


def _likeness(run: Run) -> str:
    """Return what seeds of a row share, as far as the run folder tells; itself, if it tells nothing."""
    if (config := config_of(run.folder)) is None:
        return str(run.folder)
    result = run.result or {}
    return content_hash([config, result.get("data"), (result.get("backbone") or {}).get("sha256")])


def config_of(folder: Path) -> dict[str, Any] | None:
    """Read a run's configuration, without what differs between seeds or only decides how a run is shown."""
    try:
        content = read_yaml(folder / runs.CONFIG)
    except UserError:
        return None
    if isinstance(trainer := content.get("trainer"), Mapping):
        content["trainer"] = {key: value for key, value in trainer.items() if key not in SHOWN}
    return {key: value for key, value in content.items() if key not in NOT_SETTINGS}


def _seed(run: Run) -> int | Path:
    """Return what makes two runs of a row one; a run whose seed is unknown is like no other."""
    return run.folder if run.seed is None else run.seed


def _belongs(run: Run, row: Sequence[Run], alone: bool) -> bool:
    """Tell whether an unfinished run will join a row: by its configuration, or because there is no other row."""
    config, own = config_of(run.folder), config_of(row[0].folder)
    return alone if config is None or own is None else config == own


def _one_per_seed(row: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Keep the first run of every seed, and say of which seeds there were more."""
    seeds: dict[int | Path, list[Run]] = {}
    for run in row:
        seeds.setdefault(_seed(run), []).append(run)
    notes = [
        f"seed {seed} was run more than once and counts once, as in {first.folder}; "
        f"left out: {', '.join(str(run.folder) for run in others)}"
        for seed, (first, *others) in seeds.items()
        if others
    ]
    return [first for first, *_ in seeds.values()], notes


def _differences(one: Run, other: Run) -> str:
    """Say in what the settings of `other` differ from those of `one`."""
    before, after = config_of(one.folder), config_of(other.folder)
    if before is None or after is None:
        lost = "that it has" if after is None else f"that {one.label} (1) has"
        return f"settings {lost} no {runs.CONFIG} to tell of"
    found = [
        f"{key.replace('.init_args.', '.')}: {_shown(new)} instead of {_shown(old)}"
        for key, old, new in _changes(before, after)
    ]
    if not found:
        found = list(_changes_outside(one.result or {}, other.result or {}))
    if not found:
        return f"something that {runs.CONFIG} does not tell, such as the code or a file that it names"
    if len(found) > LISTED + 1:  # a last one is as short as the words that it was left out
        found[LISTED:] = [f"and {len(found) - LISTED} more"]
    return ", ".join(found)


def _changes(one: Any, other: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Give the dotted options in which two configurations differ, with both values; what is absent is None."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in dict.fromkeys([*one, *other]):
            yield from _changes(one.get(name), other.get(name), f"{key}.{name}" if key else str(name))
    elif one != other:
        yield key, one, other


def _changes_outside(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """Give what differs although the configurations are the same: what they name has changed since."""
    before, after = one.get("data") or {}, other.get("data") or {}
    for name in dict.fromkeys([*before, *after]):
        if before.get(name) != after.get(name):
            yield f"the content of data.{name.replace('/', '.')}"
    old, new = (own.get("backbone") or {} for own in (one, other))
    if old.get("sha256") != new.get("sha256"):
        yield "the files of the decoder"
    if (one.get("model") or {}).get("sha256") != (other.get("model") or {}).get("sha256"):
        yield "the files of the model"
    if old.get("dtype") != new.get("dtype"):
        yield f"what `dtype: auto` was: {_shown(new.get('dtype'))} instead of {_shown(old.get('dtype'))}"
    if not (one.get("code") and other.get("code")):  # before a run's code was told, the version made it another one
        old, new = ((own.get("versions") or {}).get("embedlab") for own in (one, other))
        if old != new:
            yield f"the version of embedlab: {_shown(new)} instead of {_shown(old)}"


def _shown(value: Any) -> str:
    text = "none" if value is None else write_value(value)
    return text if len(text) <= LENGTH else f"{text[: LENGTH - 3]}..."
