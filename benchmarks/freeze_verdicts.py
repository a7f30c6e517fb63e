"""Verdicts on claims: rows of two runs compared on the same pairs, and what else the folders of a study tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

import numpy as np

from embedlab.errors import UserError
from embedlab.report import statistics
from embedlab.report.paired import over_seeds
from embedlab.report.predictions import scores_of
from embedlab.report.rows import Group, Run, group_runs
from embedlab.report.statistics import Interval

__all__ = [
    "FAILS",
    "HOLDS",
    "MARGIN",
    "OPEN",
    "PEARSON",
    "SPEARMAN",
    "STSB",
    "Answer",
    "Reader",
    "Study",
    "compare",
    "gain",
    "no_change",
    "no_gain",
    "shown",
    "study_of",
    "told",
    "value_of",
]

MARGIN: Final = 0.01  # one point: less counts as nothing
HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told"
STSB: Final = "test/stsb"
HEADER: Final = (
    "| run | against | {metric} x 100 | of the other | difference | 95 % interval | verdict |\n"
    "| --- | --- | ---: | ---: | ---: | ---: | --- |"
)


@dataclass(frozen=True)
class Answer:
    """What the runs say to a claim.

    Attributes:
        lines: Of Markdown.
        verdicts: One for each part of the claim; None where its runs are missing.
    """

    lines: Sequence[str]
    verdicts: Sequence[str | None] = ()


@dataclass(frozen=True)
class Study:
    """The runs of one study, the rows that the finished ones make, and the labels that there are once all are run."""

    found: Sequence[Run]
    groups: Mapping[str, Group]
    planned: Sequence[str] = ()


Reader = Callable[[Study, int], Answer]


@dataclass(frozen=True)
class Metric:
    """A correlation: its name in results, and its intervals."""

    name: str
    interval: Callable[..., Interval | None]
    difference: Callable[..., Interval | None]


SPEARMAN: Final = Metric("spearman", statistics.spearman_interval, statistics.spearman_difference)
PEARSON: Final = Metric("pearson", statistics.pearson_interval, statistics.pearson_difference)


def gain(difference: Interval) -> str:
    """Judge the claim that one run is better than another.

    >>> gain(Interval(0.01, 0.02)), gain(Interval(-0.02, -0.01)), gain(Interval(-0.01, 0.02))
    ('holds', 'does not hold', 'cannot be told')
    """
    return HOLDS if difference.low > 0 else FAILS if difference.high < 0 else OPEN


def no_gain(difference: Interval) -> str:
    """Judge the claim that one run is no better than another: less than a point counts as nothing.

    >>> no_gain(Interval(-0.02, 0.009)), no_gain(Interval(0.001, 0.02)), no_gain(Interval(-0.01, 0.02))
    ('holds', 'does not hold', 'cannot be told')
    """
    return FAILS if difference.low > 0 else HOLDS if difference.high < MARGIN else OPEN


def no_change(difference: Interval) -> str:
    """Judge the claim that one run is as good as another: less than a point either way counts as nothing.

    >>> no_change(Interval(-0.009, 0.009)), no_change(Interval(-0.02, -0.001)), no_change(Interval(-0.01, 0.02))
    ('holds', 'does not hold', 'cannot be told')
    """
    apart = difference.low > 0 or difference.high < 0
    return FAILS if apart else HOLDS if -MARGIN < difference.low and difference.high < MARGIN else OPEN


Rule = Callable[[Interval], str]
Compared = tuple[str, str, Rule | None]  # two labels and how their difference is judged; None only shows it


def compare(*pairs: Compared, metric: Metric = SPEARMAN, name: str = STSB) -> Reader:
    """Return what compares runs of a study pair by pair.

    Args:
        pairs: Labels, of which one with a `*` stands for the run of that pattern that is best on validation.
        metric: That is compared.
        name: Of the set.
    """

    def read(study: Study, draws: int) -> Answer:
        rows: list[str] = []
        verdicts: list[str | None] = []
        for label, against, rule in pairs:
            one, other = (_chosen(study, own) for own in (label, against))
            told = None if one is None or other is None else _row(one, other, rule, metric, name, draws)
            rows += [told[0]] if told else []
            verdicts += [told[1] if told else None] if rule else []
        return Answer([HEADER.format(metric=metric.name.capitalize()), *rows] if rows else [], verdicts)

    return read


def _chosen(study: Study, label: str) -> Group | None:
    """Return the row of a label, or of a pattern the one that is best on validation, once all are run and finished."""
    if "*" not in label:
        return study.groups.get(label)
    if any(run.state != "done" for run in study.found if fnmatchcase(run.label, label)):
        return None
    if any(own not in study.groups for own in study.planned if fnmatchcase(own, label)):
        return None
    scored = []
    for name, group in study.groups.items():
        values = [value_of(result, "validation", SPEARMAN) for _, result in group.results]
        if fnmatchcase(name, label) and None not in values:
            scored.append((float(np.mean(values)), group))  # type: ignore[arg-type]
    return max(scored, key=lambda own: own[0])[1] if scored else None


def value_of(result: Mapping[str, Any], name: str, metric: Metric) -> float | None:
    """Return the correlation of a run on a set; None where there is none."""
    return (result["metrics"].get(name) or {}).get(metric.name)


def _row(
    one: Group, other: Group, rule: Rule | None, metric: Metric, name: str, draws: int
) -> tuple[str, str | None] | None:
    """Compare two rows on the pairs of a set; None where a run was not scored on it."""
    both, values = (one, other), list[list[float]]()
    for group in both:
        own = [value for _, result in group.results if (value := value_of(result, name, metric)) is not None]
        if len(own) < len(group.results):
            return None
        values.append(own)
    means = [float(np.mean(own)) for own in values]
    cells = [f"{own.label} ({len(own.results)})" for own in both]
    first, second = (scores_of(group, name) for group in both)
    if isinstance(first, str) or isinstance(second, str):
        return f"| {' | '.join(cells)} | - | - | - | predictions missing or damaged | {OPEN} |", OPEN
    if not (np.array_equal(first.ids, second.ids) and np.array_equal(first.labels, second.labels)):
        return f"| {' | '.join(cells)} | - | - | - | scored on different pairs | {OPEN} |", OPEN
    for found, mean in zip((first, second), means, strict=True):
        cells.append(f"{100 * mean:.2f} ({shown(metric.interval(found.scores, found.labels, draws))})")
    over_pairs = metric.difference(first.scores, second.scores, first.labels, draws)
    difference = over_pairs and over_seeds(over_pairs, *values)
    cells += [f"{100 * (means[0] - means[1]):+.2f}", shown(difference or over_pairs, sign="+")]
    if over_pairs and not difference:
        cells[-1] += ", over pairs only"
    verdict = None if rule is None else OPEN if difference is None else rule(difference)
    return f"| {' | '.join(cells)} | {verdict or '-'} |", verdict


def shown(interval: Interval | None, sign: str = "") -> str:
    """Return the ends of an interval, x 100."""
    return "undefined" if interval is None else f"{100 * interval.low:{sign}.2f} to {100 * interval.high:{sign}.2f}"


def study_of(found: Sequence[Run], name: str, planned: Sequence[str] = ()) -> Study:
    """Put the runs of a study together, of which labels are planned; a label that was run under several settings is refused.

    Raises:
        UserError: If there is one, as nobody could tell which is meant.
    """
    own = [run for run in found if run.study == name]
    groups = {group.label: group for group in group_runs(own)}
    known = {run.label for run in own}
    for label in groups:
        if label not in known:
            raise UserError(
                f"`RUNS` must hold each label of a study under the same settings, got {label} in {name}; move the others away."
            )
    return Study(own, groups, planned)


def told(answers: Sequence[Answer]) -> str | None:
    """Put the answers to a claim together, in Markdown; None where there are none.

    One part that does not hold decides, and all must hold.
    """
    lines = [line for own in answers for line in own.lines]
    verdicts = [verdict for own in answers for verdict in own.verdicts]
    text = ""
    for line in lines:  # a table ends at an empty line
        text += ("\n" if line.startswith("- ") and text.endswith("|\n") else "") + f"{line}\n"
    if not text or not verdicts:
        return text or None
    missing, whole = verdicts.count(None), FAILS if FAILS in verdicts else HOLDS if {*verdicts} == {HOLDS} else OPEN
    return f"{text}\nVerdict: **{whole}**" + (
        f" ({missing} of {len(verdicts)} parts not yet run)\n" if missing else "\n"
    )
