"""Run the jobs of a study, each in a process of its own: started, watched, stopped.

A process is judged by the result it leaves in its run folder, whatever happens here.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from rich.console import Console

from embedlab import runs
from embedlab.errors import UserError
from embedlab.study.jobs import Job, Outcome, Process, Started
from embedlab.study.screen import Screen

__all__ = ["interruptible", "run_all"]

POLL: Final = 0.1  # seconds between looks at the processes
HEARTBEAT: Final = 15.0  # seconds between plain lines about a run
PATIENCE: Final = ((signal.SIGINT, 20.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))
CHANGED: Final = "its files were changed after the check, so it is another run than was planned"

Start = Callable[[Job, int | None], Started]


def run_all(
    jobs: Sequence[Job], at_once: int, console: Console, start: Start, heartbeat: float = HEARTBEAT
) -> list[Outcome]:
    """Run jobs until all have ended, one way or the other.

    Args:
        jobs: What to run, in this order.
        at_once: How many at a time.
        console: Where to show how it goes.
        start: Starts a run, with so many threads.
        heartbeat: Seconds between lines about a run, where there is no terminal.

    Returns:
        How each ended, in the order they ended.

    Raises:
        UserError: If what it shows is piped to where nobody reads any more; by then the same holds.
        KeyboardInterrupt: If interrupted; by then the processes that were started here are stopped.
    """
    waiting, running, ended = deque(jobs), list[Process](), list[Outcome]()
    screen, lost = Screen(console, len(jobs), at_once, heartbeat), False
    try:
        with screen.live():
            while waiting or running:
                while waiting and len(running) < at_once:
                    with _undivided():  # or a run might have been started that is not among those to stop
                        running.append(_start(waiting.popleft(), at_once, start))
                    screen.say(f"start   {running[-1].job.name}")
                time.sleep(POLL)
                if not lost and any(own.own is not None and own.own.lost for own in running):
                    lost = True
                    screen.say("the process that starts runs has died; what runs goes on and is judged by its folder")
                for process in [own for own in running if not own.is_alive()]:
                    running.remove(process)
                    ended.append(_judge(process))
                    screen.end(ended[-1], len(ended))
                screen.update(running, waiting, ended)
    except BaseException as error:  # whatever happened, no process of ours is left behind
        ours = [own for own in running if own.own is not None]
        screen.say(f"stopping {len(ours)} running ...")
        for process in running:
            if process.own is None and (status := runs.read_status(process.job.folder)) is not None:
                screen.say(f"goes on: {process.job.name}, process {status.pid}, which was not started here")
        _stop(ours)
        if isinstance(error, SystemExit):  # what rich makes of it
            raise UserError(
                "the output must be read to its end, but the pipe was closed; the same command resumes."
            ) from None
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


@contextmanager
def _undivided() -> Iterator[None]:
    """Let an interruption wait for the end; a second one does not.

    Raises:
        KeyboardInterrupt: At the end, if there was one.
    """
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers if callable(signal.getsignal(number))}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _start(job: Job, at_once: int, start: Start) -> Process:
    """Start a job, or take over the process of the same run that is still at it."""
    status = runs.read_status(job.folder)
    taken = status is not None and runs.is_alive(status)
    if status is not None and taken and status.identity == job.identity:
        return Process(job, None)
    queued = None
    if not taken:  # otherwise the run will say that it cannot have its folder
        (job.folder / runs.PROGRESS).unlink(missing_ok=True)
        queued = runs.mark(job.folder, "queued", identity=job.identity)
    # Runs side by side share the cores; each would otherwise take them all.
    share = at_once > 1 and "OMP_NUM_THREADS" not in os.environ
    own = start(job, max(1, (os.cpu_count() or 1) // at_once) if share else None)
    # Should we be killed before the run says `running` itself, the next study finds it by this.
    if runs.read_status(job.folder) == queued:
        runs.mark(job.folder, "queued", pid=own.pid)
    return Process(job, own)


def _judge(process: Process) -> Outcome:
    """Say how a process ended, and leave a status that says so too."""
    job = process.job
    try:
        result = runs.read_result(job.folder)
        status = runs.read_status(job.folder)
    except UserError as damaged:
        return Outcome(job, str(damaged), process.seconds)
    if result is not None:
        if status is None or status.state != "done":
            runs.mark(job.folder, "done")
        return Outcome(job, None, process.seconds, None if result.get("identity") == job.identity else CHANGED)
    if status is not None and status.state == "interrupted":
        return Outcome(job, "interrupted", process.seconds)
    error = status.error if status is not None and status.state == "failed" else None
    if error is None:
        error = _reason(process)
        if status is None or not runs.is_alive(status):  # another process may have taken the folder meanwhile
            runs.mark(job.folder, "failed", error)
    return Outcome(job, error, process.seconds)


def _reason(process: Process) -> str:
    """Say why a process ended that did not say so itself."""
    code = process.status()
    if code is None:
        return "the process died"
    if code < 0:
        return f"the process was killed by {signal.Signals(-code).name}"
    lines = (process.job.folder / runs.LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if code == 0:
        return "the process ended without a result"
    return lines[-1][:300] if lines else f"the process ended with status {code}"


def _stop(running: Sequence[Process]) -> None:
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
        with suppress(UserError):  # damaged, which the next study tells
            if runs.read_result(own.job.folder) is None:
                runs.mark(own.job.folder, "interrupted")
