"""Verdicts on the claims that compare no two scores: a spread, a mean, a count, and what `probe` and `errors` wrote."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.freeze_verdicts import (
    FAILS,
    HOLDS,
    MARGIN,
    OPEN,
    PEARSON,
    SPEARMAN,
    STSB,
    Answer,
    Metric,
    Study,
    shown,
    value_of,
)
from embedlab import runs
from embedlab.errors import UserError
from embedlab.report import statistics
from embedlab.report.optimism import gain_of
from embedlab.report.paired import over_seeds
from embedlab.report.predictions import scores_of
from embedlab.report.rows import Group, Run, group_runs
from embedlab.report.statistics import Interval

__all__ = ["cosines", "costs", "depth", "equal", "reconstruction", "residuals", "selection", "sizes", "spread"]

WEAK: Final = 0.5  # a correlation below it
RECOGNISED: Final = 0.95  # a score of two equal texts from which on they count as recognised


def spread(study: Study, draws: int) -> Answer:
    """Compare the spread over seeds under both losses by the interval of the ratio of their variances (F), C10."""
    from scipy.stats import f

    lines, found = [], list[tuple[float, int]]()
    for label in ("variance", "log-variance"):
        group = study.groups.get(label)
        own = [] if group is None else _of_seeds(group, STSB, SPEARMAN)
        failed = sum(run.label == label and run.state == "failed" for run in study.found)
        if own or failed:
            told = f"deviation {100 * float(np.std(own, ddof=1)):.2f} over" if len(own) > 1 else "no deviation, of"
            lines.append(f"- {label}: {told} {len(own)} finished seed{'' if len(own) == 1 else 's'}, {failed} failed")
        if len(own) > 1:
            found.append((float(np.var(own, ddof=1)), len(own) - 1))
    if len(found) < 2:
        return Answer(lines, [None])
    (plain, of_plain), (log, of_log) = found
    if log == 0:
        return Answer(lines, [OPEN])
    low, high = (plain / log / f.ppf(share, of_plain, of_log) for share in (0.975, 0.025))
    lines.append(f"- ratio of the variances {plain / log:.2f}, 95 % interval {low:.2f} to {high:.2f}")
    return Answer(lines, [HOLDS if low > 1 else FAILS if high < 1 else OPEN])


def _of_seeds(group: Group, name: str, metric: Metric) -> list[float]:
    """Return a correlation of each seed; of those that have one."""
    values = [value_of(result, name, metric) for _, result in group.results]
    return [own for own in values if own is not None]


def residuals(study: Study, draws: int) -> Answer:
    """Tell the mean of score less gold with its interval, for the authors' two mixtures, C11."""
    lines, verdict = [], None
    for label in ("mse-3e-5-32", "log-variance-3e-4-128"):
        read = "" if (group := study.groups.get(label)) is None else scores_of(group, STSB)
        if isinstance(read, str):
            continue
        left = read.scores - read.labels
        if (over_pairs := statistics.mean_interval(left, draws)) is None:
            continue
        means = left.mean(axis=1)
        whole = over_seeds(over_pairs, means)
        found, part = (over_pairs, ", over pairs only") if whole is None else (whole, "")
        lines.append(f"- {label} ({len(means)}): mean {means.mean():+.4f}, {found.low:+.4f} to {found.high:+.4f}{part}")
        if label.startswith("log"):
            near, apart = max(abs(found.low), abs(found.high)) < MARGIN, max(found.low, -found.high) >= MARGIN
            verdict = OPEN if whole is None else HOLDS if near else FAILS if apart else OPEN
    return Answer(lines, [verdict])


def sizes(study: Study, draws: int) -> Answer:
    """Compare the trained parameters of the last rung with those of the MLPs, on the decoder of the runs, C13."""
    found = {label: own for label in ("s1-paper", "s4") if (own := _trained(study.groups.get(label))) is not None}
    if len(found) < 2:
        return Answer([], [None])
    less = found["s1-paper"] - found["s4"]
    lines = [f"- {label}: {number:,} trained parameters" for label, number in found.items()]
    return Answer([*lines, f"- {less:,} fewer"], [HOLDS if less > 600_000 else FAILS])


def _trained(group: Group | None) -> int | None:
    known = None if group is None else (group.results[0][1].get("parameters") or {}).get("trainable")
    return None if known is None else int(known)


def reconstruction(study: Study, draws: int) -> Answer:
    """Correlate what the autoencoders of the drawn points leave unexplained with the points' scores on validation, C15.

    A point is the mean of its seeds.
    """
    kept, scores = [], []
    for label, group in study.groups.items():
        lost = [_unexplained(result) for _, result in group.results]
        values = _of_seeds(group, "validation", SPEARMAN)
        if label.startswith("point-") and None not in lost and len(values) == len(lost):
            kept.append(-float(np.mean(lost)))  # type: ignore[arg-type]
            scores.append(float(np.mean(values)))
    if len(kept) < 3:
        return Answer([], [None])
    found = statistics.spearman_interval(kept, scores, draws)  # undefined for a few points, which resamples leave alike
    ranks = np.corrcoef(statistics.midranks(kept), statistics.midranks(scores))[0, 1]
    line = (
        f"- less unexplained against validation, {len(kept)} points: Spearman x 100 {100 * ranks:.0f} ({shown(found)})"
    )
    if found is None:
        return Answer([line], [OPEN])
    return Answer([line], [FAILS if found.low > 0 else HOLDS if found.high < WEAK else OPEN])


def _unexplained(result: Mapping[str, Any]) -> float | None:
    """Return the share of variance that the autoencoders of a run do not explain on validation texts; None if unknown."""
    known = ((result.get("held_out") or {}).get("autoencoders") or {}).get("unexplained")
    return None if known is None else float(known)


def selection(found: Sequence[Run]) -> Answer:
    """Tell how much each run that is selected on test data gains by it over its like that is not."""
    groups, lines = group_runs(found), []
    for group in groups:
        if (gained := gain_of(group, groups, STSB)) is None:
            continue
        for metric in (SPEARMAN, PEARSON):
            if values := [100 * own for own in gained.of(STSB, metric.name)]:
                told = f"{float(np.mean(values)):+.2f} {metric.name.capitalize()} x 100"
                seeds = ", ".join(f"{own:+.2f}" for own in values)
                lines.append(f"- {group.study}/{group.label} over {gained.other}: {told} (by seed: {seeds})")
    return Answer(lines)


def costs(study: Study, draws: int) -> Answer:
    """Tell what each run trained and took, C18."""
    lines = []
    for label, group in study.groups.items():
        known = group.results[0][1].get("seconds") or {}
        seconds = sum(known.get(own) or 0.0 for own in ("features", "train")) + sum(
            (known.get("stages") or {}).values()
        )
        lines.append(f"- {label}: {_trained(group) or 0:,} trained parameters, {seconds:.0f} s")
    return Answer(lines)


# What other commands wrote ---------------------------------------------------------------------------------


def _blocks(folder: Path, table: str) -> list[dict[str, str]]:
    """Return the rows of the blocks themselves, of the last token's states."""
    try:
        with (folder / f"{table}.csv").open(encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["pooling"] == "last" and row["layer"].isdecimal()]
        found = [row for row in rows if int(row["layer"]) > 0]
    except (OSError, UnicodeError, KeyError, csv.Error) as error:
        raise UserError(f"`--probed` must be a folder of `embedlab probe`, got {folder} ({error}); name one.") from None
    if len({row["decoder"] for row in found}) != 1 or len({row["layer"] for row in found}) < 3:
        raise UserError(
            f"`--probed` must tell of one decoder of 3 blocks at least, got {folder}; probe one, --poolings last."
        )
    return found


def cosines(folder: Path) -> Answer:
    """Judge whether raw cosines agree little with people, most late, and least at the end, C1, by Fisher's intervals."""
    rows = [row for row in _blocks(folder, "correlations") if row["treatment"] == "raw"]
    found = {int(row["layer"]): float(row["pearson"]) for row in rows if row["pearson"]}
    if len(found) < 3 or 2 * min(found) > max(found):
        return Answer([], [None])
    record = runs.read_json(folder / "probe.json") or {}
    pairs = ((record.get("data") or {}).get("pairs") or {}).get("rows")
    if not isinstance(pairs, int) or pairs < 4:
        raise UserError(
            f"`--probed` must tell of how many pairs in probe.json, got {pairs!r} in {folder}; probe again."
        )
    last = max(found)
    first, late = ({n: own for n, own in found.items() if (n > last / 2) == half} for half in (False, True))
    best = max(found.values())
    top, end = _fisher(best, pairs), _fisher(found[last], pairs)
    apart = float(np.arctanh(max(late.values())) - np.arctanh(max(first.values())))
    half = 1.96 * (2 / (pairs - 3)) ** 0.5  # as if of different pairs, which is on the safe side
    parts = {
        f"weak, the best below {100 * WEAK:.0f}": (top.high < WEAK, top.low > WEAK),
        "the best in the later half": (apart > half, apart < -half),
        "the last below half the best": (end.high < top.low / 2, end.low > top.high / 2),
    }
    verdicts = [HOLDS if yes else FAILS if no else OPEN for yes, no in parts.values()]
    number = next(n for n, own in found.items() if own == best)
    return Answer(
        [
            f"- best of {len(found)} blocks: {number}, Pearson {100 * best:.2f} ({shown(top)}); last block: "
            f"{100 * found[last]:.2f} ({shown(end)})",
            f"- all blocks: {', '.join(f'{100 * found[own]:.1f}' for own in sorted(found))}",
            *(f"- {what}: {own}" for what, own in zip(parts, verdicts, strict=True)),
        ],
        verdicts,
    )


def _fisher(value: float, pairs: int) -> Interval:
    """Return the 95 % interval of a correlation over so many pairs."""
    low, high = np.tanh(np.arctanh(value) + np.array([-1.96, 1.96]) / (pairs - 3) ** 0.5)
    return Interval(float(low), float(high))


def depth(folder: Path) -> Answer:
    """Fit the logarithm of the reconstruction error of each block to its depth, C5."""
    rows, lines, verdict = _blocks(folder, "reconstruction"), [], None
    for name, what in (("autoencoder_mse", "error"), ("autoencoder_fvu", "error by variance")):
        points = [(int(row["layer"]), float(row[name])) for row in rows if row.get(name)]
        if len(points) < 3 or min(value for _, value in points) <= 0:
            continue
        slope, low, high = _slope([x for x, _ in points], np.log([value for _, value in points]).tolist())
        lines.append(f"- {what}: x {np.exp(slope):.3f} a block, 95 % interval {np.exp(low):.3f} to {np.exp(high):.3f}")
        if name == "autoencoder_mse":
            verdict = HOLDS if low > 0 else FAILS if high < 0 else OPEN
    return Answer(lines, [verdict])


def _slope(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Return the slope of a line by least squares, and its 95 % interval (t)."""
    from scipy.stats import linregress, t

    fit = linregress(x, y)
    half = float(t.ppf(0.975, len(x) - 2) * fit.stderr)
    return float(fit.slope), float(fit.slope) - half, float(fit.slope) + half


def equal(file: Path) -> Answer:
    """Judge by the last rung, s4, whether equal texts go unrecognised, C17; the other runs are shown."""
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        found: Mapping[str, Any] = content["invariance"] or {}
        lines, verdict = [], None
        for label, told in found.items():
            own = told["equal"]
            lines.append(
                f"- {label}: (x, x) scores {own['mean']:.3f}, {own['low']:.3f} to {own['high']:.3f} over {own['number']} texts"
            )
            for change, shift in told["shifts"].items():
                lines += [f"- {label}, {change}: moves a score by {shift['size']:.3f} on average"] if shift else []
            if label == "s4":
                verdict = HOLDS if own["high"] < RECOGNISED else FAILS if own["low"] >= RECOGNISED else OPEN
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(
            f"`--errors` must be a file of `embedlab errors --json`, got {file} ({why}); name one."
        ) from None
    return Answer(lines, [verdict])
