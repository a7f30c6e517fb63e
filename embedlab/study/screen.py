"""Show how a study goes: a table that moves on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from embedlab import runs
from embedlab.report.render import duration, progress
from embedlab.study.jobs import Job, Outcome, Process

__all__ = ["Screen"]


class Screen:
    """Shows how a study goes: a table that moves on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, total: int, at_once: int, heartbeat: float) -> None:
        self.console, self.total, self.at_once, self.heartbeat = console, total, at_once, heartbeat
        self.view: Live | None = None

    @contextmanager
    def live(self) -> Iterator[None]:
        """Keep the moving part on the screen, where there is one."""
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, refresh_per_second=4, transient=True) as self.view:
            yield

    def say(self, line: str, style: str = "") -> None:
        """Print a line that stays."""
        self.console.print(Text(line, style=style), soft_wrap=True)

    def end(self, outcome: Outcome, number: int) -> None:
        """Say how a run ended."""
        place, job = f"[{number}/{self.total}]", outcome.job
        if outcome.error is None:
            note = "" if outcome.note is None else f"; {outcome.note}"
            self.say(f"done    {job.name} {place} in {duration(outcome.seconds)}{_score(job)}{note}", "green")
        else:
            self.say(
                f"FAILED  {job.name} {place} after {duration(outcome.seconds)}: {outcome.error} "
                f"(log: {job.folder / runs.LOG})",
                "red",
            )

    def update(self, running: Sequence[Process], waiting: Sequence[Job], ended: Sequence[Outcome]) -> None:
        """Show how far the running ones are."""
        left = _left(running, waiting, ended, self.at_once)
        whole = f"{len(ended)} of {self.total} ended" + (f", about {duration(left)} left" if left else "")
        if self.view is not None:
            self.view.update(Group(_moving(running), Text(whole, style="bold")))
            return
        for own in running:
            if time.monotonic() - own.shown >= self.heartbeat:
                own.shown = time.monotonic()
                now = runs.read_progress(own.job.folder)
                where = progress(now) if now is not None else "starting"
                self.say(f"running {own.job.name}: {where} ({duration(own.seconds)} so far; {whole})")


def _moving(running: Sequence[Process]) -> Table:
    """Draw the running ones with their bars."""
    table = Table.grid(padding=(0, 2))
    for own in running:
        now = runs.read_progress(own.job.folder)
        bar = ProgressBar(total=now.total, completed=now.done, width=24) if now is not None and now.total else ""
        where = progress(now) if now is not None else "starting"
        table.add_row(Text(own.job.name), bar, Text(where), Text(f"{duration(own.seconds)} so far", style="dim"))
    return table


def _left(running: Sequence[Process], waiting: Sequence[Job], ended: Sequence[Outcome], at_once: int) -> float | None:
    """Guess the seconds until all is done, from runs that are; None while there are none to go by."""
    took: dict[str, float] = {own.job.label: own.seconds for own in ended if own.error is None}

    def expected(job: Job) -> float | None:
        known = took.get(job.label, job.expected)
        return known if known is not None else sum(took.values()) / len(took) if took else None

    total = 0.0
    for own in running:
        now = runs.read_progress(own.job.folder)
        guess, phase = expected(own.job), now.seconds_left if now is not None else None
        if guess is None and phase is None:
            return None
        total += max(guess - own.seconds if guess is not None else 0.0, phase or 0.0)
    for job in waiting:
        guess = expected(job)
        if guess is None:
            return None
        total += guess
    return total / max(1, min(at_once, len(running) + len(waiting)))


def _score(job: Job) -> str:
    """Give the score of a finished run on its first test set."""
    result = runs.read_result(job.folder) or {}
    for name, metric in result.get("metrics", {}).items():
        if name.startswith("test/"):
            value = metric.get("spearman")
            shown = f"{100 * value:.2f}" if value is not None else "undefined"
            return f": Spearman {shown} on {name.removeprefix('test/')}"
    return ""
