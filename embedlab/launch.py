"""Runs of a study as processes: started, watched, shown, stopped.

A process is all there is between a study and a run. It is judged by the result it leaves, and survives in the
run folder whatever happens here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from embedlab import runs
from embedlab.errors import UserError
from embedlab.tables import duration, progress

__all__ = ["Job", "Outcome", "interruptible", "run_all"]

POLL: Final = 0.1  # seconds between looks at the processes
HEARTBEAT: Final = 15.0  # seconds between plain lines about a run
PATIENCE: Final = ((signal.SIGINT, 20.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))


@dataclass(frozen=True)
class Job:
    """A run that is to be finished.

    Args:
        label: Its strategy's name in the study.
        seed: Its seed.
        folder: Its run folder.
        request: Hash of what it is asked for.
        command: What to start.
        expected: Seconds that runs of this strategy took before; None if there were none.
    """

    label: str
    seed: int
    folder: Path
    request: str
    command: Sequence[str]
    expected: float | None = None

    @property
    def name(self) -> str:
        """What it is called on the screen."""
        return f"{self.label} seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """How a job ended: `error` is None if it is finished."""

    job: Job
    error: str | None
    seconds: float


@dataclass
class _Process:
    """A job under way. `own` is None for a process left behind by a study that was killed."""

    job: Job
    own: subprocess.Popen[bytes] | None
    started: float = field(default_factory=time.monotonic)
    shown: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def is_alive(self) -> bool:
        if self.own is not None:
            return self.own.poll() is None
        status = runs.read_status(self.job.folder)
        return status is not None and runs.is_alive(status)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process and its helpers."""
        status = runs.read_status(self.job.folder)
        pid = self.own.pid if self.own is not None else status.pid if status is not None else None
        if pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(pid, number)  # each run leads a group of its own


def run_all(jobs: Sequence[Job], at_once: int, console: Console, heartbeat: float = HEARTBEAT) -> list[Outcome]:
    """Run jobs until all have ended, one way or the other.

    Args:
        jobs: What to run, in this order.
        at_once: How many at a time.
        console: Where to show how it goes.
        heartbeat: Seconds between lines about a run, where there is no terminal.

    Returns:
        How each ended, in the order they ended.

    Raises:
        KeyboardInterrupt: If interrupted; by then the processes are stopped.
    """
    waiting, running, ended = deque(jobs), list[_Process](), list[Outcome]()
    screen = _Screen(console, len(jobs), at_once, heartbeat)
    try:
        with screen.live():
            while waiting or running:
                while waiting and len(running) < at_once:
                    running.append(_start(waiting.popleft(), at_once))
                    screen.say(f"start   {running[-1].job.name}")
                time.sleep(POLL)
                for process in [own for own in running if not own.is_alive()]:
                    running.remove(process)
                    ended.append(_judge(process))
                    screen.end(ended[-1], len(ended))
                screen.update(running, waiting, ended)
    except BaseException:  # whatever happened, no process is left behind
        screen.say(f"stopping {len(running)} running ...")
        _stop(running)
        raise
    return ended


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a request to end, or a closed terminal, interrupt like Ctrl-C does."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(job: Job, at_once: int) -> _Process:
    """Start a job, or take over the process of the same request that is still at it."""
    status = runs.read_status(job.folder)
    if status is not None and status.request == job.request and runs.is_alive(status):
        return _Process(job, None)
    (job.folder / runs.PROGRESS).unlink(missing_ok=True)
    queued = runs.mark(job.folder, "queued", request=job.request)
    environment = {"PYTHONUNBUFFERED": "1", **os.environ}
    if at_once > 1:  # runs side by side share the cores; each would otherwise take them all
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // at_once)))
    with open(job.folder / runs.LOG, "ab") as log:
        own = subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches it through us only, once
        )
    # Should we be killed before the run says `running` itself, the next study finds it by this.
    if runs.read_status(job.folder) == queued:
        runs.mark(job.folder, "queued", pid=own.pid)
    return _Process(job, own)


def _judge(process: _Process) -> Outcome:
    """Say how a process ended, and leave a status that says so too."""
    job = process.job
    try:
        result = runs.read_result(job.folder)
        status = runs.read_status(job.folder)
    except UserError as damaged:
        return Outcome(job, str(damaged), process.seconds)
    if result is not None and result.get("request") == job.request:
        if status is None or status.state != "done":
            runs.mark(job.folder, "done")
        return Outcome(job, None, process.seconds)
    error = status.error if status is not None and status.state == "failed" else None
    if error is None:
        error = _reason(process)
        runs.mark(job.folder, "failed", error)
    return Outcome(job, error, process.seconds)


def _reason(process: _Process) -> str:
    """Say why a process ended that did not say so itself."""
    code = process.own.returncode if process.own is not None else None
    if code is None:
        return "the process died"
    if code < 0:
        return f"the process was killed by {signal.Signals(-code).name}"
    lines = (process.job.folder / runs.LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if code == 0:
        return "the process ended without a result"
    return lines[-1][:300] if lines else f"the process ended with status {code}"


def _stop(running: Sequence[_Process]) -> None:
    """Stop processes, first politely; a further Ctrl-C makes it less so."""
    for number, patience in PATIENCE:
        alive = [own for own in running if own.is_alive()]
        for own in alive:
            own.send(number)
        until = time.monotonic() + patience
        try:
            while time.monotonic() < until and any(own.is_alive() for own in alive):
                time.sleep(POLL)
        except KeyboardInterrupt:
            continue
    for own in running:
        if runs.read_result(own.job.folder) is None:
            runs.mark(own.job.folder, "failed", "interrupted; it resumes from its last checkpoint")


class _Screen:
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
            self.say(f"done    {job.name} {place} in {duration(outcome.seconds)}{_score(job)}", "green")
        else:
            self.say(
                f"FAILED  {job.name} {place} after {duration(outcome.seconds)}: {outcome.error} "
                f"(log: {job.folder / runs.LOG})",
                "red",
            )

    def update(self, running: Sequence[_Process], waiting: Sequence[Job], ended: Sequence[Outcome]) -> None:
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


def _moving(running: Sequence[_Process]) -> Table:
    """Draw the running ones with their bars."""
    table = Table.grid(padding=(0, 2))
    for own in running:
        now = runs.read_progress(own.job.folder)
        bar = ProgressBar(total=now.total, completed=now.done, width=24) if now is not None and now.total else ""
        where = progress(now) if now is not None else "starting"
        table.add_row(Text(own.job.name), bar, Text(where), Text(f"{duration(own.seconds)} so far", style="dim"))
    return table


def _left(running: Sequence[_Process], waiting: Sequence[Job], ended: Sequence[Outcome], at_once: int) -> float | None:
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
