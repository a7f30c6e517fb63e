"""`embedlab errors`: on which pairs and which kinds of pairs a finished run is wrong, and what should not move its scores.

Worst pairs and slices come from the predictions of a run; what a full stop or a capital letter does is asked of the model.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from embedlab import runs
from embedlab.analysis import error_tables
from embedlab.analysis.error_tables import Table
from embedlab.analysis.invariance import Invariance, pooled, score_all
from embedlab.analysis.rank_errors import Worst, rank_errors, residuals, worst
from embedlab.analysis.scored import PairSet, Scored, read_scored
from embedlab.analysis.slices import FEW, Slice, Value, measure, slices_of
from embedlab.arguments import Parser, check_out
from embedlab.errors import UserError
from embedlab.report.command import console
from embedlab.runs.folder import write_text_atomic
from embedlab.use.options import add_model_options, model_of

__all__ = ["main"]

Array = NDArray[np.float64]
RESAMPLES: Final = 2000
ENDINGS: Final = {"markdown": ".md", "json": ".json", "csv": ".csv"}


@dataclass(frozen=True)
class Analysis:
    """What was found.

    Attributes:
        pairs: The set.
        strategies: What was predicted, K strategies.
        ranked: Whether `errors` are of ranks, not residuals.
        errors: By which the worst pairs were chosen, (N,) for each strategy.
        worst: The worst pairs of each strategy.
        slices: The slices of the set.
        measured: For each slice, by the label of a strategy.
        notes: What a reader must know.
        invariance: By the label of a strategy; None where the models were not asked.
    """

    pairs: PairSet
    strategies: Sequence[Scored]
    ranked: bool
    errors: Sequence[Array]
    worst: Sequence[Worst]
    slices: Sequence[Slice]
    measured: Mapping[str, Sequence[Mapping[str, Value]]]
    notes: Sequence[str]
    invariance: Mapping[str, Invariance] | None = None

    def tables(self) -> list[Table]:
        """Return tables of worst pairs and slices."""
        found = error_tables.worst_tables(self.pairs, self.strategies, self.errors, self.worst, self.ranked)
        return [*found, *error_tables.slice_tables(self.slices, self.pairs.gold, self.measured)]

    def tables_of_models(self) -> list[Table]:
        """Return tables of invariance; none where the models were not asked."""
        return [] if self.invariance is None else error_tables.invariance_tables(self.invariance)


def main(arguments: Sequence[str]) -> int:
    """Run `embedlab errors`.

    Args:
        arguments: What was typed after `errors`.

    Returns:
        Exit status 0.

    Raises:
        UserError: If something asked for cannot be done.
    """
    options = _options(arguments)
    pairs, strategies, notes = read_scored(options.runs, options.set)
    if options.model:
        _check_models(strategies)
    found = _look(pairs, strategies, notes, options)
    screen = console()
    _say(notes, screen)
    error_tables.show(found.tables(), screen)
    _write(found, options)  # before what takes long, and again behind it
    if options.model:
        invariance = _ask(pairs, strategies, options)
        told = [f"{label}: {_reread(own)}" for label, own in invariance.items()]
        found = replace(found, invariance=invariance, notes=[*notes, *told])
        error_tables.show(found.tables_of_models(), screen)
        _say(told, screen)
        _write(found, options)
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "embedlab errors",
        "Show on which pairs finished runs are most wrong, on which kinds of pairs, and what a full stop, a capital letter or\n"
        "the order of two texts does to their scores. Runs that differ in their seed only are put together.",
        "example: embedlab errors runs/demo/freeze/seed-0 runs/demo/tfidf/seed-0 --set stsb --markdown errors.md",
    )
    parser.add_argument(
        "runs", metavar="RUN", type=Path, nargs="+", help="folder of a finished run, or one with several"
    )
    parser.add_argument("--set", metavar="NAME", help="which predictions, such as stsb or validation (first test set)")
    parser.add_argument("--worst", metavar="N", type=int, default=10, help="pairs shown (default: %(default)s)")
    parser.add_argument(
        "--residuals", action="store_true", help="worst by score less gold, where scores are meant on the scale of gold"
    )
    parser.add_argument(
        "--resamples", metavar="N", type=int, default=RESAMPLES, help="of the bootstrap (default: %(default)s; 0: none)"
    )
    parser.add_argument("--no-model", dest="model", action="store_false", help="predictions only, the quick part")
    parser.add_argument("--limit", metavar="N", type=int, help="most texts, and most pairs, that the models score")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="also write the tables as Markdown")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write all that was found as JSON")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="also write every pair with its errors, worst first")
    add_model_options(parser)
    options = parser.read(arguments)
    for name, least in (("worst", 1), ("resamples", 0), ("limit", 1)):
        if (given := getattr(options, name)) is not None and given < least:
            raise UserError(f"`--{name}` must be at least {least}, got {given}; raise it, or leave it out.")
    for name, ending in ENDINGS.items():
        if getattr(options, name) is not None:
            check_out(getattr(options, name), f"--{name}", ending)
    return options


def _check_models(strategies: Sequence[Scored]) -> None:
    """Refuse runs that cannot be loaded as they lack a file, before anything takes time."""
    for folder in (folder for own in strategies for folder in own.folders):
        for name in (runs.CONFIG, runs.BEST):
            if not (folder / name).is_file():
                raise UserError(
                    f"`RUN` must hold {name} to be asked for more scores, but {folder} lacks it; copy the whole folder, or "
                    "give --no-model."
                )


def _look(pairs: PairSet, strategies: Sequence[Scored], notes: Sequence[str], options: argparse.Namespace) -> Analysis:
    """Find worst pairs and measure slices."""
    by = residuals if options.residuals else rank_errors
    errors = []
    for own in strategies:
        try:
            errors.append(by(own.scores, pairs.gold))
        except UserError as error:
            raise UserError(f"{own.label}: {error}" if len(strategies) > 1 else str(error)) from None
    slices = slices_of(pairs)
    return Analysis(
        pairs,
        strategies,
        not options.residuals,
        errors,
        [worst(own, options.worst) for own in errors],
        slices,
        {
            own.label: [measure(part, own.scores, pairs.gold, options.resamples) for part in slices]
            for own in strategies
        },
        notes,
    )


def _ask(pairs: PairSet, strategies: Sequence[Scored], options: argparse.Namespace) -> dict[str, Invariance]:
    """Load the runs, one at a time, and let them score what should not differ."""

    def loaded(folder: Path) -> Any:
        return model_of(options, str(folder.absolute()), options.backbone)

    for folder in [folder for own in strategies for folder in own.folders][1:]:
        loaded(folder)  # what cannot be loaded is refused before the first scores take their minutes
    found = {}
    for own in strategies:
        scores = []
        for folder, recorded in zip(own.folders, own.scores, strict=True):
            model = loaded(folder)
            scores.append(score_all(model, pairs, recorded, own.query, options.limit, sys.stderr.isatty()))
        found[own.label] = pooled(scores)
    return found


def _reread(own: Invariance) -> str:
    return f"the loaded run scores the pairs of the set within {own.reread:.2g} of what was recorded"


def _say(notes: Sequence[str], screen: Console) -> None:
    for note in notes:
        screen.print(f"note: {note}", markup=False, soft_wrap=True)


def _write(found: Analysis, options: argparse.Namespace) -> None:
    """Write the files that were asked for, each whole."""
    if options.markdown is not None:
        tables = [*found.tables(), *found.tables_of_models()]
        title = f"Errors on {found.pairs.name.removeprefix('test/')}, {len(found.pairs)} pairs"
        write_text_atomic(options.markdown, error_tables.markdown(title, tables, found.notes))
    if options.json is not None:
        runs.write_json_atomic(options.json, as_json(found))
    if options.csv is not None:
        write_text_atomic(options.csv, as_csv(found))


def as_json(found: Analysis) -> dict[str, Any]:
    """Return what was found as plain values."""
    pairs = found.pairs

    def one(number: int, place: int) -> dict[str, Any]:
        return {
            "id": int(pairs.ids[place]),
            "error": float(found.errors[number][place]),
            "score": float(found.strategies[number].scores[:, place].mean()),
            "gold": float(pairs.gold[place]),
            "first": pairs.first[place],
            "second": pairs.second[place],
        }

    return {
        "set": pairs.name,
        "pairs": len(pairs),
        "errors": "ranks" if found.ranked else "residuals",
        "runs": {own.label: [str(folder) for folder in own.folders] for own in found.strategies},
        "worst": {
            own.label: {
                sign: [one(number, place) for place in places] for sign, places in asdict(found.worst[number]).items()
            }
            for number, own in enumerate(found.strategies)
        },
        "slices": [
            {
                "slice": own.respect,
                "name": own.name,
                "pairs": own.pairs,
                "few": own.pairs < FEW,
                "gold_sd": own.spread(pairs.gold),
                "runs": {
                    label: {quantity: asdict(value) for quantity, value in values[number].items()}
                    for label, values in found.measured.items()
                },
            }
            for number, own in enumerate(found.slices)
        ],
        "invariance": found.invariance and {label: own.as_json() for label, own in found.invariance.items()},
        "notes": list(found.notes),
    }


def as_csv(found: Analysis) -> str:
    """Return every pair with its scores, errors and slices, the largest mean error over strategies first."""
    pairs, file = found.pairs, io.StringIO()
    respects = list(dict.fromkeys(own.respect for own in found.slices[1:]))
    writer = csv.writer(file)
    columns = [f"{own.label}: {what}" for own in found.strategies for what in ("score", "error")]
    writer.writerow(["id", "first", "second", "gold", *columns, *respects])
    for i in np.argsort(-np.abs(np.mean(found.errors, axis=0)), kind="stable"):
        numbers = [
            f"{value:.7g}"
            for own, errors in zip(found.strategies, found.errors, strict=True)
            for value in (own.scores[:, i].mean(), errors[i])
        ]
        inside = {own.respect: own.name for own in found.slices if own.members[i]}
        row = [int(pairs.ids[i]), pairs.first[i], pairs.second[i], f"{pairs.gold[i]:.7g}", *numbers]
        writer.writerow([*row, *(inside.get(respect, "") for respect in respects)])
    return file.getvalue()
