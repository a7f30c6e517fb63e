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
    SPEARMAN,
    STSB,
    Answer,
    Study,
    scores_of,
    shown,
    value_of,
)
from embedlab import runs
from embedlab.errors import UserError
from embedlab.report import statistics
from embedlab.report.rows import Group

__all__ = ["cosines", "costs", "depth", "equal", "reconstruction", "residuals", "sizes", "spread"]

WEAK: Final = 0.5  # a correlation below it
RECOGNISED: Final = 0.95  # a score of two equal texts from which on they count as recognised


def spread(study: Study, draws: int) -> Answer:
    """Compare the spread over seeds under both losses by the interval of the ratio of their variances (F), C10."""
    from scipy.stats import f

    lines, values = [], []
    for label in ("variance", "log-variance"):
        group = study.groups.get(label)
        own = [] if group is None else [value_of(result, STSB, SPEARMAN) for _, result in group.results]
        if len(own) < 2 or None in own:
            return Answer([], [None])
        failed = sum(run.label == label and run.state == "failed" for run in study.found)
        values.append(float(np.var(own, ddof=1)))  # type: ignore[arg-type]
        lines.append(f"- {label}: deviation {100 * values[-1] ** 0.5:.2f} over {len(own)} seeds, {failed} failed")
        values.append(len(own) - 1)
    plain, of_plain, log, of_log = values
    if log == 0:
        return Answer(lines, [OPEN])
    low, high = (plain / log / f.ppf(share, of_plain, of_log) for share in (0.975, 0.025))
    lines.append(f"- ratio of the variances {plain / log:.2f}, 95 % interval {low:.2f} to {high:.2f}")
    return Answer(lines, [HOLDS if low > 1 else FAILS if high < 1 else OPEN])


def residuals(study: Study, draws: int) -> Answer:
    """Tell the mean of score less gold with its interval, for the authors' two mixtures, C11."""
    lines, verdict = [], None
    for label in ("mse-3e-5-32", "log-variance-3e-4-128"):
        read = None if (group := study.groups.get(label)) is None else scores_of(group, STSB)
        found = None if read is None else statistics.mean_interval(read[0] - read[1], draws)
        if read is None or found is None:
            continue
        lines.append(f"- {label}: mean {float((read[0] - read[1]).mean()):+.4f}, {found.low:+.4f} to {found.high:+.4f}")
        if label.startswith("log"):
            near, apart = max(abs(found.low), abs(found.high)) < MARGIN, found.low > 0 or found.high < 0
            verdict = HOLDS if near else FAILS if apart else OPEN
    return Answer(lines, [verdict])


def sizes(study: Study, draws: int) -> Answer:
    """Compare the trained parameters of the last rung with those of the MLPs, on the decoder of the runs, C13."""
    found = {label: _trained(study.groups[label]) for label in ("s1-paper", "s4") if label in study.groups}
    if len(found) < 2:
        return Answer([], [None])
    less = found["s1-paper"] - found["s4"]
    lines = [f"- {label}: {number:,} trained parameters" for label, number in found.items()]
    return Answer([*lines, f"- {less:,} fewer"], [HOLDS if less > 600_000 else FAILS])


def _trained(group: Group) -> int:
    return int((group.results[0][1].get("parameters") or {}).get("trainable") or 0)


def reconstruction(study: Study, draws: int) -> Answer:
    """Correlate the last reconstruction losses of the drawn points with their scores on validation, C15."""
    losses, scores = [], []
    for label, group in study.groups.items():
        for folder, result in group.results:
            loss, score = _last_loss(folder), value_of(result, "validation", SPEARMAN)
            if label.startswith("point-") and loss is not None and score is not None:
                losses.append(-loss)
                scores.append(score)
    if len(losses) < 3:
        return Answer([])
    found = statistics.spearman_interval(losses, scores, draws)  # undefined for a few runs, which resamples leave alike
    ranks = np.corrcoef(statistics.midranks(losses), statistics.midranks(scores))[0, 1]
    told = f"Spearman x 100: {100 * ranks:.0f} ({shown(found)})"
    return Answer([f"- better reconstruction against validation, {len(losses)} runs: {told}"])


def _last_loss(folder: Path) -> float | None:
    """Return the mean of the last ten losses of a stage; None where another run trained it, or it has no log."""
    path = folder / runs.STAGES / "autoencoders" / "metrics.csv"
    try:
        with path.open(encoding="utf-8") as file:
            rows = [row.get("autoencoders/loss") for row in csv.DictReader(file)]
        values = [float(own) for own in rows if own]
    except (OSError, ValueError):
        return None
    return float(np.mean(values[-10:])) if values else None


def costs(study: Study, draws: int) -> Answer:
    """Tell what each run trained and took, C18."""
    lines = []
    for label, group in study.groups.items():
        known = group.results[0][1].get("seconds") or {}
        seconds = sum(known.get(own) or 0.0 for own in ("features", "train")) + sum(
            (known.get("stages") or {}).values()
        )
        lines.append(f"- {label}: {_trained(group):,} trained parameters, {seconds:.0f} s")
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
    """Judge whether raw cosines agree little with people, most late, and least at the end, C1."""
    rows = [row for row in _blocks(folder, "correlations") if row["treatment"] == "raw"]
    found = {int(row["layer"]): float(row["pearson"]) for row in rows if row["pearson"]}
    if len(found) < 3:
        return Answer([], [None])
    best, last = max(found, key=lambda own: found[own]), max(found)
    lines = [
        f"- best of {len(found)} blocks: {best}, Pearson {100 * found[best]:.2f}; last block: {100 * found[last]:.2f}",
        f"- all blocks: {', '.join(f'{100 * found[own]:.1f}' for own in sorted(found))}",
    ]
    parts = (found[best] < WEAK, best > last / 2, best < last and found[last] < found[best] / 2)
    told = zip(
        (f"weak, below {100 * WEAK:.0f}", "best in the later half", "last below half the best"), parts, strict=True
    )
    return Answer(
        [*lines, *(f"- {what}: {'yes' if own else 'no'}" for what, own in told)],
        [HOLDS if own else FAILS for own in parts],
    )


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
