"""How results look: the same rows as a table on the terminal and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from embedlab.report.statistics import Interval
from embedlab.runs import Progress

__all__ = [
    *("Report", "Row", "Sheet", "Table"),
    *("duration", "markdown", "over_seeds", "plain", "progress", "runs_of", "show"),
]

CAPTION = (
    "Spearman and Pearson x 100: mean and standard deviation over seeds; 95 % interval of Spearman by "
    "bootstrap over pairs. Trained: parameters. Times and tokens: means over seeds, training with features "
    "and earlier stages."
)
NAMES = ("Study", "Strategy")
COST = ("Backbone", "Trained", "Training", "Scoring", "Tokens")


@dataclass(frozen=True)
class Row:
    """A strategy's results on one set under one group of settings, over seeds.

    Args:
        label: The strategy, with a number where its runs were made under several settings.
        study: Its study.
        backbone: Its decoder, empty without one.
        finished: Seeds that are finished; one that was run twice counts once.
        planned: Seeds there are.
        pairs: Pairs of the set.
        spearman: Mean and standard deviation, in -1 to 1; None where undefined.
        interval: 95 % interval of Spearman over pairs.
        pearson: Mean and standard deviation.
        trainable: Parameters that were trained.
        training: Seconds of all that came before scoring.
        scoring: Seconds of scoring.
        tokens: Tokens trained on.
        notes: Numbers of footnotes.
    """

    label: str
    study: str
    backbone: str
    finished: int
    planned: int
    pairs: int | None
    spearman: tuple[float, float | None] | None
    interval: Interval | None
    pearson: tuple[float, float | None] | None
    trainable: float | None
    training: float | None
    scoring: float | None
    tokens: float | None
    notes: Sequence[int]


@dataclass(frozen=True)
class Table:
    """All strategies on one set.

    Args:
        name: The set.
        pairs: Its sizes; more than one if runs saw different ones.
        rows: Best first.
        with_study: Whether the study must be told.
    """

    name: str
    pairs: Sequence[int]
    rows: Sequence[Row]
    with_study: bool

    @property
    def title(self) -> str:
        """The set and its size."""
        sizes = " or ".join(map(str, self.pairs))
        return f"{self.name} ({sizes} pair{'' if sizes == '1' else 's'})" if sizes else self.name

    @property
    def header(self) -> list[str]:
        """Names of the columns."""
        columns = ["Strategy", "Backbone", "Seeds", "Spearman", "95 % interval", "Pearson"]
        columns += ["Trained", "Training", "Scoring", "Tokens", "Notes"]
        return ["Study", *columns] if self.with_study else columns

    @property
    def lines(self) -> Sequence[Sequence[str]]:
        """All rows as text."""
        return [self.cells(row) for row in self.rows]

    def cells(self, row: Row) -> list[str]:
        """Return a row as text."""
        interval = row.interval
        cells = [
            row.label,
            row.backbone or "-",
            str(row.finished) if row.finished == row.planned else f"{row.finished} of {row.planned}",
            over_seeds(row.spearman),
            f"{100 * interval.low:.1f} to {100 * interval.high:.1f}" if interval is not None else "-",
            over_seeds(row.pearson),
            _count(row.trainable),
            duration(row.training),
            duration(row.scoring),
            _count(row.tokens),
            ", ".join(map(str, row.notes)),
        ]
        return [row.study, *cells] if self.with_study else cells


@dataclass(frozen=True)
class Sheet:
    """A further table, whose cells are written already.

    Args:
        title: What stands above it.
        header: Names of its columns.
        rows: Its cells.
        remarks: Lines below it.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    remarks: Sequence[str] = ()

    @property
    def lines(self) -> Sequence[Sequence[str]]:
        """All rows as text."""
        return self.rows


@dataclass(frozen=True)
class Report:
    """Everything there is to show.

    Args:
        title: The study, or the folder if there are several.
        summary: One line on how much is finished.
        tables: One per test set.
        unfinished: A line for each run without a result.
        footnotes: What the numbers in the columns of notes stand for.
        ranked: Tables of retrieval sets.
        sheets: Further tables.
    """

    title: str
    summary: str
    tables: list[Table]
    unfinished: list[str]
    footnotes: list[str]
    ranked: Sequence[Sheet] = ()
    sheets: Sequence[Sheet] = ()


def show(report: Report, console: Console) -> None:
    """Print a report."""
    console.print(Text(f"{report.title}: {report.summary}", style="bold"))
    for table in report.tables:
        console.print(Text(table.title))
        whole = _draw(table, table.header)
        if Measurement.get(console, console.options.update(max_width=10_000), whole).maximum <= console.width:
            console.print(whole)
            continue
        cost = [name for name in table.header if name in NAMES or name in COST]  # two narrow ones instead
        console.print(_draw(table, [name for name in table.header if name not in COST]))
        console.print(_draw(table, cost))
    if report.tables:
        console.print(Text(CAPTION, style="dim"))
    for sheet in report.ranked:
        _show_sheet(sheet, console)
    for number, note in enumerate(report.footnotes, 1):
        console.print(Text(f"{number}: {note}", style="dim"))
    for sheet in report.sheets:
        _show_sheet(sheet, console)
    for line in report.unfinished:
        console.print(Text(line, style="red" if line.startswith("failed") else ""), soft_wrap=True)


def _show_sheet(sheet: Sheet, console: Console) -> None:
    console.print(Text(sheet.title))
    if sheet.rows:
        console.print(_draw(sheet, sheet.header))
    for line in sheet.remarks:
        console.print(Text(line, style="dim"))


def _draw(table: Table | Sheet, columns: Sequence[str]) -> RichTable:
    """Draw some columns of a table."""
    drawn = RichTable()
    for name in columns:
        if name in (*NAMES, "Backbone"):
            drawn.add_column(name, overflow="fold", min_width=len(name))
        else:
            drawn.add_column(name, justify="right", no_wrap=True)
    for line in table.lines:
        cells = dict(zip(table.header, line, strict=True))
        drawn.add_row(*(Text(cells[name]) for name in columns))
    return drawn


def markdown(report: Report) -> str:
    """Return a report as Markdown."""
    parts = [f"# {plain(report.title)}", f"{report.summary.capitalize()}."]
    for table in report.tables:
        parts += _written(table)
    if report.tables:
        parts.append(CAPTION)
    for sheet in report.ranked:
        parts += [*_written(sheet), *map(plain, sheet.remarks)]
    if report.footnotes:
        parts += ["Notes:", "\n".join(f"{n}. {plain(note)}" for n, note in enumerate(report.footnotes, 1))]
    for sheet in report.sheets:
        parts += [*_written(sheet), *map(plain, sheet.remarks)]
    if report.unfinished:
        parts += ["## Without a result", "\n".join(f"- {plain(line)}" for line in report.unfinished)]
    return "\n\n".join(parts) + "\n"


def _written(table: Table | Sheet) -> list[str]:
    """Return a heading and a table as Markdown."""
    rule = ["---" if name in (*NAMES, "Backbone") else "---:" for name in table.header]
    lines = [table.header, rule]
    lines += [[plain(cell) for cell in line] for line in table.lines]
    drawn = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return [f"## {plain(table.title)}", *([drawn] if table.rows else [])]


def progress(now: Progress) -> str:
    """Say how far a phase is.

    >>> progress(Progress("training", 12, 179, 33.0))
    'training 12/179, 33 s left'
    """
    parts = now.phase if not now.total else f"{now.phase} {now.done}/{now.total}"
    return parts if now.seconds_left is None else f"{parts}, {duration(now.seconds_left)} left"


def runs_of(number: int) -> str:
    """Write a number of runs.

    >>> runs_of(1), runs_of(2)
    ('1 run', '2 runs')
    """
    return f"{number} run" if number == 1 else f"{number} runs"


def duration(seconds: float | None) -> str:
    """Write a time so that it can be read at a glance.

    >>> duration(0.42), duration(45.2), duration(130), duration(8000), duration(None)
    ('0.4 s', '45 s', '2.2 min', '2.2 h', '-')
    """
    if seconds is None:
        return "-"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"


def over_seeds(value: tuple[float, float | None] | None) -> str:
    """Write a mean, with its standard deviation where there is one."""
    if value is None:
        return "undefined"
    mean, sd = value
    return f"{100 * mean:.2f}" if sd is None else f"{100 * mean:.2f} ± {100 * sd:.2f}"


def _count(number: float | None) -> str:
    """Write a large number in three digits.

    >>> _count(0), _count(820), _count(4_884_480), _count(None)
    ('0', '820', '4.88M', '-')
    """
    if number is None:
        return "-"
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"


def plain(text: str) -> str:
    """Keep Markdown from reading signs in names and messages as its own."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
