"""How an analysis of errors looks: the same tables on the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from embedlab.analysis.invariance import Invariance
from embedlab.analysis.rank_errors import Worst
from embedlab.analysis.scored import PairSet, Scored
from embedlab.analysis.slices import FEW, QUANTITIES, Slice, Value
from embedlab.report.render import plain
from embedlab.report.statistics import Interval

__all__ = ["Table", "invariance_tables", "markdown", "show", "slice_tables", "worst_tables"]

Array = NDArray[np.float64]
SLICED = (
    "Spearman and Pearson x 100 within the slice: lower by themselves where the gold scores differ less (Gold SD). Rank error: "
    "rank by score less rank by gold, as a share of the ranks of the whole set, on average; above 0 is overrated. In brackets "
    f"95 % intervals by bootstrap over pairs. *: fewer than {FEW} pairs. Where gold chooses a slice, compare strategies only."
)
RANKED = "Error: rank by score less rank by gold, as a share of the ranks of the set; means over seeds."
RESIDUAL = "Error: score less gold; means over seeds."
SHIFTED = (
    "Shift: score of what was changed less score of what was not. |shift| 95 %: 95 % of the shifts are no larger. "
    "In SD: divided by the standard deviation of the scores of the set. Holds: |shift| is at most .02 on "
    "average, and at most .05 for 95 %."
)


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: What it shows.
        header: Names of the columns.
        rows: A cell per column.
        left: Columns that hold names and texts; the others hold numbers.
        note: What must be known to read it.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[str]
    note: str = ""


def show(tables: Sequence[Table], console: Console) -> None:
    """Print tables; a note that several in a row share stands below the last."""
    for table, after in zip(tables, [*tables[1:], None], strict=True):
        console.print(Text(table.title, style="bold"))
        drawn = RichTable()
        for name in table.header:
            if name in table.left:
                drawn.add_column(Text(name), overflow="fold")
            else:
                drawn.add_column(Text(name), justify="right", no_wrap=True)
        for row in table.rows:
            drawn.add_row(*map(Text, row))
        console.print(drawn)
        if table.note and (after is None or after.note != table.note):
            console.print(Text(table.note, style="dim"))


def markdown(title: str, tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Return tables and notes as Markdown."""
    parts = [f"# {plain(title)}"]
    for table in tables:
        rule = ["---" if name in table.left else "---:" for name in table.header]
        lines = [list(map(plain, table.header)), rule, *(list(map(plain, row)) for row in table.rows)]
        parts += [f"## {plain(table.title)}", "\n".join(f"| {' | '.join(line)} |" for line in lines), plain(table.note)]
    if notes:
        parts += ["Notes:", "\n".join(f"- {plain(note)}" for note in notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def worst_tables(
    pairs: PairSet, strategies: Sequence[Scored], errors: Sequence[Array], found: Sequence[Worst], ranked: bool
) -> list[Table]:
    """Show the worst pairs of each strategy, with the errors of the others beside them.

    Args:
        pairs: The set.
        strategies: What was predicted.
        errors: Of each strategy, (N,).
        found: Its worst pairs.
        ranked: Whether errors are of ranks.
    """
    tables = []
    for number, (own, worst) in enumerate(zip(strategies, found, strict=True)):
        others = [other for other in range(len(strategies)) if other != number]
        header = [
            "Id",
            "Error",
            "Score",
            "Gold",
            *(f"Error of {strategies[i].label}" for i in others),
            "First",
            "Second",
        ]
        for word, places in (("overrated", worst.overrated), ("underrated", worst.underrated)):
            rows = [
                [
                    str(pairs.ids[i]),
                    f"{errors[number][i]:+.3f}",
                    f"{own.scores[:, i].mean():.3f}",
                    f"{pairs.gold[i]:.3f}",
                    *(f"{errors[other][i]:+.3f}" for other in others),
                    pairs.first[i],
                    pairs.second[i],
                ]
                for i in places
            ]
            title = f"{own.label}: most {word}"
            tables.append(Table(title, header, rows, ("First", "Second"), RANKED if ranked else RESIDUAL))
    return tables


def slice_tables(
    slices: Sequence[Slice], gold: Array, measured: Mapping[str, Sequence[Mapping[str, Value]]]
) -> list[Table]:
    """Show slices: of one strategy all quantities side by side, of several one quantity a table, the strategies side by side.

    Args:
        slices: The slices.
        gold: Gold scores of the set, (N,).
        measured: For each strategy its quantities, a mapping per slice.
    """
    begun = []
    for own in slices:
        spread = own.spread(gold)
        few = "*" if own.pairs < FEW else ""
        begun.append([own.respect, own.name, f"{own.pairs}{few}", "-" if spread is None else f"{spread:.3f}"])
    header, left = ["Slice", "", "Pairs", "Gold SD"], ("Slice", "")

    def cells(label: str, quantity: str) -> list[str]:
        return [_cell(values[quantity], quantity) for values in measured[label]]

    if len(measured) == 1:
        (label,) = measured
        columns = {f"Slices of {label}": {quantity: cells(label, quantity) for quantity in QUANTITIES}}
    else:
        columns = {
            f"Slices: {quantity}": {label: cells(label, quantity) for label in measured} for quantity in QUANTITIES
        }
    return [
        Table(
            title,
            [*header, *own],
            [[*start, *rest] for start, *rest in zip(begun, *own.values(), strict=True)],
            left,
            SLICED,
        )
        for title, own in columns.items()
    ]


def invariance_tables(found: Mapping[str, Invariance]) -> list[Table]:
    """Show what equal texts score and what changes do, the strategies below one another for each change."""
    equal = []
    for label, own in found.items():
        numbers = (own.equal.mean, own.equal.sd, own.equal.low, own.equal.high)
        shown = [f"{value:.3f}" for value in numbers]
        equal.append([label, str(own.equal.number), *shown, f"{100 * own.equal.above:.1f} %"])
    header = ["Strategy", "Texts", "Mean", "SD", "Least", "Most", "At least as high as"]
    note = "At least as high as: share of the pairs of the set that score no higher than a text with itself, mean over texts."
    tables = [Table("A text with itself, (x, x)", header, equal, ("Strategy",), note)]
    rows = []
    for change in next(iter(found.values())).shifts:
        for label, own in found.items():
            shift = own.shifts[change]
            if shift is None:
                rows.append([change, label, "0", *["-"] * 9])
                continue
            signed = [_signed(value) for value in (shift.mean, shift.low, shift.high)]
            sizes = [f"{shift.size:.3f}", f"{shift.most:.3f}"]
            shares = f"{100 * shift.within_mean:.0f} %, {100 * shift.within_most:.0f} %"
            in_sd = f"{shift.size_in_sd:.2f}, {shift.most_in_sd:.2f}"
            holds = "yes" if shift.holds else "no"
            rows.append([change, label, str(shift.number), *signed, f"{shift.sd:.3f}", *sizes, shares, in_sd, holds])
    header = ["Change", "Strategy", "Number", "Shift", "Least", "Most", "SD", "|shift|", "95 %", "To .02, .05"]
    header += ["In SD", "Holds"]
    return [*tables, Table("What changes a score", header, rows, ("Change", "Strategy"), SHIFTED)]


def _signed(value: float) -> str:
    """Write a number with its sign, but zero without."""
    text = f"{value:+.3f}"
    return "0.000" if float(text) == 0 else text


def _cell(own: Value, quantity: str) -> str:
    """Write a value with its interval."""
    if own.value is None:
        return "undefined"
    if quantity == "Rank error":
        return f"{_signed(own.value)}{_interval(own.interval, 1.0, '+.3f')}"
    return f"{100 * own.value:.1f}{_interval(own.interval, 100.0, '.1f')}"


def _interval(interval: Interval | None, scale: float, form: str) -> str:
    return "" if interval is None else f" ({scale * interval.low:{form}} to {scale * interval.high:{form}})"
