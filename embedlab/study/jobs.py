"""The runs of a study: what is to be run, what is running, and how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from embedlab import runs

__all__ = ["Job", "Outcome", "Process", "Spawned", "Started", "spawn"]


@dataclass(frozen=True)
class Job:
    """A run that is to be finished.

    Args:
        label: Its strategy's name in the study.
        seed: Its seed.
        folder: Its run folder.
        identity: Hash of what decides it.
        arguments: The command line, without the program.
        overrides: What the study sets differently, by dotted option.
        content: The same as a YAML file, to be written into the folder.
        wish: A hash of the pass of a decoder over texts that its features come from, and what it wants of it.
        environment: Variables it is started with.
        embeds: Whether its strategy gives vectors, so that it can rank a whole corpus.
        expected: Seconds that runs of this strategy took before; None if there were none.
    """

    label: str
    seed: int
    folder: Path
    identity: str
    arguments: Sequence[str]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    content: Mapping[str, Any] = field(default_factory=dict)
    wish: tuple[str, Mapping[str, Any]] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    expected: float | None = None
    embeds: bool = True

    @property
    def name(self) -> str:
        """What it is called on the screen."""
        return f"{self.label} seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """How a job ended: `error` is None if it is finished; `note` is what must be said of it then."""

    job: Job
    error: str | None
    seconds: float
    note: str | None = None


class Started(Protocol):
    """A process that was started."""

    @property
    def pid(self) -> int:
        """Its number, which is that of its group too."""
        ...

    @property
    def lost(self) -> bool:
        """Whether its exit status will never be known; then only its run folder tells how it goes."""
        ...

    def poll(self) -> int | None:
        """Return its exit status, minus the number of the signal that killed it; None while it runs."""
        ...


@dataclass
class Spawned:
    """A process started by this one."""

    own: subprocess.Popen[bytes]
    lost: bool = False

    @property
    def pid(self) -> int:
        """Its number."""
        return self.own.pid

    def poll(self) -> int | None:
        """Return its exit status, minus the number of the signal that killed it; None while it runs."""
        return self.own.poll()


def spawn(job: Job, threads: int | None, command: Sequence[str] = (sys.executable, "-m", "embedlab")) -> Spawned:
    """Start a run as a process that shares nothing with any other.

    Args:
        job: The run.
        threads: How many it may use; None leaves that to it.
        command: The program.
    """
    environment = {"PYTHONUNBUFFERED": "1", **os.environ, **job.environment}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    with open(job.folder / runs.LOG, "ab") as log:
        return Spawned(
            subprocess.Popen(
                [*command, *job.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches it through us only, once
            )
        )


@dataclass
class Process:
    """A job under way. `own` is None for a process that was started elsewhere: by a study that was killed, or by hand."""

    job: Job
    own: Started | None
    started: float = field(default_factory=time.monotonic)
    shown: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since this study has watched it."""
        return time.monotonic() - self.started

    def status(self) -> int | None:
        """Return its exit status, where that is known."""
        return None if self.own is None else self.own.poll()

    def is_alive(self) -> bool:
        """Tell whether it still lives."""
        if self.status() is not None:
            return False
        if self.own is not None and not self.own.lost:
            return True
        status = runs.read_status(self.job.folder)
        return status is not None and runs.is_alive(status)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process and its helpers."""
        assert self.own is not None, "what was started elsewhere is left alone"
        with suppress(ProcessLookupError):
            os.killpg(self.own.pid, number)  # each run leads a group of its own
