"""The runs of a study: what is to be run, what is running, and how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from embedlab import runs

__all__ = ["Job", "Outcome", "Process"]


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
class Process:
    """A job under way. `own` is None for a process left behind by a study that was killed."""

    job: Job
    own: subprocess.Popen[bytes] | None
    started: float = field(default_factory=time.monotonic)
    shown: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since this study has watched it."""
        return time.monotonic() - self.started

    def is_alive(self) -> bool:
        """Tell whether it still lives."""
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
