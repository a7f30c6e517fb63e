"""`embedlab report`: tables out of run folders, whether or not all runs are finished.

Every number comes from `result.json` and the predictions beside it. What failed or is still missing is
listed, never averaged away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from embedlab import runs
from embedlab.arguments import Parser, check_out
from embedlab.errors import UserError, did_you_mean
from embedlab.report import leakage as apart
from embedlab.report import notes, optimism, paired, render, statistics
from embedlab.report.predictions import Scores, scores_of
from embedlab.report.ranked import tables, validated, was_searched
from embedlab.report.render import Report, Row, Table
from embedlab.report.rows import Group, Run, group_runs
from embedlab.runs.folder import write_text_atomic
from embedlab.yaml_files import read_yaml

__all__ = ["collect", "console", "main", "summarise"]

RESAMPLES: Final = 2000


def main(arguments: list[str]) -> int:
    """Run `embedlab report`.

    Args:
        arguments: What was typed after `report`.

    Returns:
        Exit status 0.

    Raises:
        UserError: If there is nothing to report on.
    """
    parser = Parser(
        "embedlab report",
        "Show tables of the runs in a folder, finished or not.",
        "example: embedlab report runs/demo",
    )
    parser.add_argument("runs", metavar="RUNS", type=Path, help="folder with runs, at any depth")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="also write the tables as Markdown")
    parser.add_argument("--set", metavar="NAME", help="show this set only, such as stsb or validation")
    parser.add_argument(
        "--resamples",
        metavar="N",
        type=int,
        default=RESAMPLES,
        help="of the bootstrap (default: %(default)s; 0: none)",
    )
    parser.add_argument(
        "--leakage", action="store_true", help="also show scores apart by overlap with the training rows"
    )
    parser.add_argument(
        "--against",
        metavar="ROW",
        help=f"also show how far each row lies from this one on the same pairs, with a paired test; {paired.BEST}: the first one",
    )
    options = parser.read(arguments)
    if options.resamples < (least := 0 if options.against is None else 1):
        raise UserError(f"`--resamples` must be at least {least}, got {options.resamples}; raise it, or leave it out.")
    if options.markdown is not None:
        check_out(options.markdown, "--markdown", ".md")
    report = summarise(collect(options.runs), options.set, options.resamples, options.leakage, options.against)
    render.show(report, console())
    if options.markdown is not None:
        write_markdown(report, options.markdown)
    return 0


def console() -> Console:
    """Return where tables are printed; wide enough not to break lines where nobody looks on."""
    screen = Console(highlight=False)
    return screen if screen.is_terminal else Console(highlight=False, width=max(screen.width, 180))


def write_markdown(report: Report, path: Path) -> None:
    """Write a report as Markdown."""
    write_text_atomic(path, render.markdown(report))


def collect(folder: Path) -> list[Run]:
    """Read every run in a folder.

    Raises:
        UserError: If there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        siblings = [own.name for own in folder.parent.iterdir() if own.is_dir()] if folder.parent.is_dir() else []
        raise UserError(f"`RUNS` must be a folder, but {folder} is none{did_you_mean(folder.name, siblings)}.")
    found = [_read(own) for own in runs.find_runs(folder)]
    if not found:
        raise UserError(f"`RUNS` must hold runs, but there are none in {folder}; `embedlab compare` makes them.")
    return found


def _read(folder: Path) -> Run:
    try:
        result = runs.read_result(folder)
        status = runs.read_status(folder) if result is None else None  # a result alone says that a run is finished
    except UserError as error:
        return Run(folder, *_named(folder), "failed", str(error), None)
    study, label, seed = runs.identify(folder) if result is not None else _named(folder)
    if result is not None:
        study, label = result.get("study") or study, result.get("label") or label
        return Run(folder, study, label, result.get("seed", seed), "done", None, result)
    assert status is not None, "a run folder holds one of the two"
    state, reason = status.state, status.error
    if state == "running" and not runs.is_alive(status):
        state, reason = "failed", "the process died"
    if state == "done":
        state, reason = "failed", f"{runs.RESULT} is missing"
    return Run(folder, study, label, seed, state, reason, None)


def _named(folder: Path) -> tuple[str, str, int | None]:
    """Return study, label and seed of a run without a result: by its configuration, or else by where it lies."""
    study, label, seed = runs.identify(folder)
    if seed is None:  # `run_dir` was given, so that the folder above is no label
        study, label = label, folder.absolute().name
    try:
        config = read_yaml(folder / runs.CONFIG)
    except UserError:  # the run has not come so far
        return study, label, seed
    study, label = (str(config.get(key) or place) for key, place in (("study", study), ("label", label)))
    return study, label, own if isinstance(own := config.get("seed_everything"), int) else seed


def summarise(
    found: Sequence[Run],
    only: str | None = None,
    resamples: int = RESAMPLES,
    leakage: bool = False,
    against: str | None = None,
) -> Report:
    """Sum runs up, one table per test set and one row per strategy and its settings.

    Args:
        found: The runs.
        only: Name of the one set to show; None shows all test sets.
        resamples: Of the bootstrap; 0 leaves intervals out.
        leakage: Whether scores are also shown apart by overlap with the training rows.
        against: Label of a row, or "best": what all others are compared with, too.

    Raises:
        UserError: If no run has the set, or there is no such row.
    """
    groups = group_runs(found)
    studies = list(dict.fromkeys(run.study for run in found))
    footnotes: dict[str, int] = {}
    shown, sheets, ranked = [], [], list[render.Sheet]()
    for name in _sets(found, only):
        scored = [own for own in groups if any(name in result["metrics"] for _, result in own.results)]
        searched = [own for own in scored if was_searched(own, name)]
        ranked += validated(searched, name, len(studies) > 1)
        # Best first, so that footnotes are numbered as they are met.
        there = sorted((own for own in scored if own not in searched), key=lambda own: _rank(own, name))
        if not there:
            continue
        compared = notes.compare([result for own in there for _, result in own.results], name)
        predicted = [scores_of(own, name) if resamples else None for own in there]
        rows = [
            _row(own, scores, name, resamples, footnotes, compared, optimism.told(own, groups, name))
            for own, scores in zip(there, predicted, strict=True)
        ]
        if against is not None and len(there) > 1:
            differences = paired.sheet(there, predicted, name, against, resamples)
            sheets += [differences] if differences.rows or against != paired.BEST else []
        if leakage:
            sheets.append(apart.sheet(there, name))
        pairs = sorted({row.pairs for row in rows if row.pairs})
        shown.append(Table(name.removeprefix("test/"), pairs, rows, with_study=len(studies) > 1))
    done = sum(run.state == "done" for run in found)
    return Report(
        title=studies[0] if len(studies) == 1 else f"{len(studies)} studies",
        summary=f"{done} of {render.runs_of(len(found))} finished",
        tables=shown,
        unfinished=[_line(run) for run in found if run.state != "done"],
        footnotes=list(footnotes),
        ranked=ranked if only is not None else [*ranked, *tables(groups, resamples, len(studies) > 1)],
        sheets=sheets,
    )


def _sets(found: Sequence[Run], only: str | None) -> list[str]:
    """Return the keys of the sets to show."""
    there = list(dict.fromkeys(key for run in found if run.result for key in run.result["metrics"]))
    if only is not None:
        for key in (f"test/{only}", only):
            if key in there:
                return [key]
        names = [key.removeprefix("test/") for key in there]
        raise UserError(
            f"`--set` must name a set that a finished run was scored on, got {only!r}{did_you_mean(only, names)}."
        )
    return [key for key in there if key.startswith("test/")] or there


def _rank(group: Group, name: str) -> tuple[bool, float, str]:
    """Return what rows are sorted by: Spearman, best first and undefined last, then the label."""
    found = _over_seeds([own["metrics"][name].get("spearman") for _, own in group.results if name in own["metrics"]])
    return found is None, -found[0] if found else 0.0, group.label


def _row(
    group: Group,
    predicted: Scores | str | None,
    name: str,
    resamples: int,
    footnotes: dict[str, int],
    compared: notes.Compared,
    more: Sequence[str],
) -> Row:
    """Sum up the seeds of one row on one set, with more notes; at least one was scored on it."""
    results = [result for _, result in group.results if name in result["metrics"]]
    metrics = [result["metrics"][name] for result in results]
    told = [*group.notes, *notes.of_row(results, name, compared), *more]
    told += [f"undefined: {metric['undefined']}" for metric in metrics if metric.get("undefined")]
    interval = None
    if predicted is not None and not any(metric.get("spearman") is None for metric in metrics):
        found = predicted if isinstance(predicted, str) else predicted.interval(resamples)
        interval = None if isinstance(found, str) else found
        told += [f"no interval: {found}"] if isinstance(found, str) else []
    return Row(
        label=group.label,
        study=group.study,
        backbone=_joined((result.get("backbone") or {}).get("name") for result in results),
        finished=len(results),
        planned=group.planned,
        pairs=metrics[0].get("pairs"),
        spearman=_over_seeds([metric.get("spearman") for metric in metrics]),
        interval=interval,
        pearson=_over_seeds([metric.get("pearson") for metric in metrics]),
        trainable=_mean((result.get("parameters") or {}).get("trainable") for result in results),
        training=_mean(_training_seconds(result) for result in results),
        scoring=_mean((result.get("seconds") or {}).get("score") for result in results),
        tokens=_mean(result.get("train_tokens") for result in results),
        notes=sorted({footnotes.setdefault(note, len(footnotes) + 1) for note in told}),
    )


def _over_seeds(values: Sequence[float | None]) -> tuple[float, float | None] | None:
    """Return mean and standard deviation; None if the number is undefined for any seed."""
    defined = [value for value in values if value is not None]
    return statistics.mean_and_sd(defined) if len(defined) == len(values) else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _joined(values: Iterable[str | None]) -> str:
    return ", ".join(dict.fromkeys(value for value in values if value))


def _training_seconds(result: Mapping[str, Any]) -> float | None:
    """Return all that was spent before scoring: features, earlier stages, training."""
    seconds = result.get("seconds")
    if not seconds:
        return None
    stages = (seconds.get("stages") or {}).values()
    return float(sum(own or 0.0 for own in (seconds.get("features"), seconds.get("train"), *stages)))


def _line(run: Run) -> str:
    """Say of a run without a result how it stands."""
    if run.state == "failed":
        return f"failed: {run.name}: {run.error or 'no reason given'} (see {run.folder / runs.LOG})"
    progress = runs.read_progress(run.folder) if run.state == "running" else None
    if progress is None:
        return f"{run.state}: {run.name}"
    return f"{run.state}: {run.name}: {render.progress(progress)}"
