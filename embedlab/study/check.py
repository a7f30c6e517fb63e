"""The process that checks a study and starts its runs, seen from the study: torch is imported there, and once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from embedlab import precheck, runs
from embedlab.errors import UserError
from embedlab.study.jobs import Job, Started, spawn
from embedlab.study.spec import Strategy, Study

__all__ = ["Checked", "Checker", "Server", "check", "server"]

FORKS: Final = hasattr(os, "fork") and sys.platform != "darwin"  # whose system libraries do not outlive a fork
PATIENCE: Final = 5.0  # seconds that the process has to end


@dataclass(frozen=True)
class Checked:
    """What a check found out about a strategy of a study.

    Attributes:
        strategy: It.
        files: YAML files of its runs.
        overrides: Those for its runs, by dotted option.
        content: The same as a YAML file.
        identities: What decides a run, by seed.
        wish: A hash of a pass of a decoder over texts, and what it wants of it; None if nothing.
        embeds: Whether it gives vectors.
    """

    strategy: Strategy
    files: Sequence[str]
    overrides: Mapping[str, Any]
    content: Mapping[str, Any]
    identities: Mapping[int, str]
    wish: tuple[str, Mapping[str, Any]] | None = None
    embeds: bool = True


class Checker(Protocol):
    """What checks strategies and starts runs."""

    lost: bool

    def check(self, strategies: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """Check strategies; see `embedlab.training.check`."""
        ...

    def start(self, job: Job, threads: int | None) -> Started:
        """Start a run, with so many threads."""
        ...


def check(study: Study, root: Path, checker: Checker) -> list[Checked]:
    """Check every strategy of a study.

    Args:
        study: The study.
        root: Where studies are kept.
        checker: What knows the classes.

    Raises:
        UserError: If anything is wrong with any of them; it holds every fault with the labels it belongs to.
    """
    faults: dict[str, list[str]] = {}
    for strategy in study.strategies:
        for file in (study.protocol, strategy.config, study.backbone):
            try:
                if file is not None:
                    precheck.check_file(file)
            except UserError as error:
                faults.setdefault(str(error), []).append(strategy.label)
    if not faults:
        wanted = [_wanted(study, strategy, root) for strategy in study.strategies]
        answers = checker.check(wanted)
        for strategy, answer in zip(study.strategies, answers, strict=True):
            for fault in answer["faults"]:
                faults.setdefault(fault, []).append(strategy.label)
    if not faults:
        return [
            Checked(
                strategy,
                answer["files"],
                answer["overrides"],
                answer["content"],
                {int(seed): own for seed, own in answer["identities"].items()},
                answer["wish"],
                answer.get("embeds", True),
            )
            for strategy, answer in zip(study.strategies, answers, strict=True)
        ]
    lines = [f"{', '.join(labels)}: {fault}" for fault, labels in faults.items()]
    raise UserError(lines[0] if len(lines) == 1 else "\n  ".join([f"{len(lines)} faults in the study:", *lines]))


def _wanted(study: Study, strategy: Strategy, root: Path) -> dict[str, Any]:
    """Return what the check is told of a strategy."""
    seeds = study.seeds_of(strategy)
    return {
        "files": [str(study.protocol), str(strategy.config)],
        "backbone": None if study.backbone is None else str(study.backbone),
        "shared": study.shared_with(strategy),
        "own": strategy.overrides,
        "seeds": seeds,
        "places": study.places(strategy, seeds[0], root),
    }


@contextmanager
def server() -> Iterator[Server]:
    """Give the process, and end it; what it has started goes on."""
    own = Server()
    try:
        yield own
    finally:
        own.close()


class Server:
    """The process, which is sent requests and sends answers as lines of JSON."""

    def __init__(self) -> None:
        self.lost, self.statuses = False, dict[int, int]()
        self._number, self._waiting = 0, b""
        self._errors = tempfile.TemporaryFile()
        self._running: subprocess.Popen[bytes] | None = None

    @property
    def _process(self) -> subprocess.Popen[bytes]:
        """The process, started when it is first needed."""
        if self._running is None:
            self._running = subprocess.Popen(
                [sys.executable, "-m", "embedlab.training.server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
                env={"PYTHONUNBUFFERED": "1", **os.environ},
                start_new_session=True,  # Ctrl-C is for us
            )
        return self._running

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def check(self, strategies: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """Check strategies in a process forked for that."""
        answer = self._ask(do="check", strategies=strategies)
        if answer is None or answer["answer"] is None:
            raise UserError(
                f"the process that checks a study must live, but it died of: {self._last_words()}; run the command again."
            )
        found: Sequence[Mapping[str, Any]] = answer["answer"]
        return found

    def start(self, job: Job, threads: int | None) -> Started:
        """Fork a run; without a server it is started as any process."""
        log = str(job.folder / runs.LOG)
        wanted = {
            "arguments": list(job.arguments),
            "environment": dict(job.environment),
            "log": log,
            "threads": threads,
        }
        answer = self._ask(do="run", **wanted) if FORKS else None
        return spawn(job, threads) if answer is None else _Forked(answer["pid"], answer["id"], self)

    def close(self) -> None:
        """End it, whatever it is at."""
        self._errors.close()
        if self._running is None:
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)  # runs lead groups of their own
        self._process.wait()
        self._process.stdout.close()

    def read(self, wait: bool = False) -> list[dict[str, Any]]:
        """Note what runs ended with; return other answers.

        Args:
            wait: Whether to wait until the process says something, or is gone.
        """
        assert self._process.stdout is not None
        answers = list[dict[str, Any]]()
        while not self.lost:
            os.set_blocking(self._process.stdout.fileno(), wait)
            part = self._process.stdout.read(1 << 16)
            if part is None:  # nothing yet
                break
            wait, self.lost = False, not part
            *lines, self._waiting = (self._waiting + part).split(b"\n")
            for answer in map(json.loads, lines):
                if "status" in answer:
                    self.statuses[answer["id"]] = answer["status"]
                else:
                    answers.append(answer)
        return answers

    def _ask(self, **request: Any) -> dict[str, Any] | None:
        """Send a request and wait for its answer; None where the process is gone."""
        assert self._process.stdin is not None
        self._number += 1
        line = json.dumps({"id": self._number, **request}, default=str).encode() + b"\n"
        try:
            while line:
                line = line[self._process.stdin.write(line) :]
        except BrokenPipeError:
            self.lost = True
        while not self.lost:
            for answer in self.read(wait=True):
                if answer["id"] == self._number:
                    return answer
        return None

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"status {self._process.poll()}"


@dataclass
class _Forked:
    """A run that the process has forked."""

    pid: int
    number: int
    server: Server

    def poll(self) -> int | None:
        """Return its exit status, minus the number of the signal that killed it, or None while it is not known."""
        self.server.read()
        return self.server.statuses.get(self.number)

    @property
    def lost(self) -> bool:
        """Whether nobody will tell its exit status any more."""
        return self.server.lost and self.number not in self.server.statuses
