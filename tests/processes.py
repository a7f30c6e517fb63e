"""Runs of embedlab in processes of their own that need no seconds of imports.

One server imports torch, lightning, transformers and embedlab once and is forked for every run. A run may be
sabotaged: a function named by the test changes something inside the process before the command line is called,
such as what kills it at a named point.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).parents[1]
OUTPUT = ".process-"  # files with what a run printed
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.processes", "tests.warm"])


@dataclass(frozen=True)
class Done:
    """How a process ended.

    Attributes:
        status: Exit status, or minus the number of the signal that killed it.
        stdout: What it printed.
        stderr: What it said of itself.
    """

    status: int
    stdout: str
    stderr: str


class Running:
    """A run that was started; `wait` for it."""

    def __init__(self, process: BaseProcess, output: Path) -> None:
        self.process, self._output = process, output

    def wait(self) -> Done:
        """Return how it ended."""
        self.process.join()
        assert self.process.exitcode is not None
        texts = [self._output.with_suffix(end).read_text() for end in (".out", ".err")]
        return Done(self.process.exitcode, *texts)


def start(
    place: Path,
    words: Sequence[str],
    sabotage: Callable[..., None] | None = None,
    *arguments: Any,
    environment: dict[str, str] | None = None,
) -> Running:
    """Start a run.

    Args:
        place: Its working directory; its cache is there too.
        words: The command line, without the program.
        sabotage: A function at module level, called in the process before the command line.
        arguments: Of that function.
        environment: Variables to set.
    """
    output = place / f"{OUTPUT}{time.monotonic_ns()}"
    more = {"EMBEDLAB_CACHE": str(place / "cache"), "HF_HUB_OFFLINE": "1", **(environment or {})}
    process = _SERVER.Process(target=_run, args=(str(place), list(words), str(output), more, sabotage, arguments))
    process.start()
    return Running(process, output)


def run(
    place: Path, words: Sequence[str], status: int = 0, sabotage: Callable[..., None] | None = None, *arguments: Any
) -> Done:
    """Do a run, and assert how it ends."""
    done = start(place, words, sabotage, *arguments).wait()
    assert done.status == status, f"status {done.status} instead of {status}\n{done.stdout}\n{done.stderr}"
    return done


def run_two(
    place: Path,
    words: Sequence[str],
    sabotage: Callable[..., None] | None = None,
    *arguments: Any,
    killed: bool = False,
    statuses: tuple[int, int] = (0, 0),
) -> Done:
    """Do a run in two processes that talk over gloo, and assert how they end; return how the first ended.

    Args:
        place: As for `start`.
        words: As for `start`.
        sabotage: Done in both.
        arguments: Of that.
        killed: Whether sabotage kills them.
        statuses: How the two must end otherwise.
    """
    port = free_port()
    words = [*words, "--trainer.strategy", "ddp", "--trainer.devices", "2"]
    both = [
        start(
            place,
            words,
            sabotage,
            *arguments,
            environment={
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "NODE_RANK": "0",
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
            },
        )
        for rank in range(2)
    ]
    ended = _both(both)
    if killed:
        assert -signal.SIGKILL in [done.status for done in ended], [done.stderr for done in ended]
        return ended[0]
    for rank, (done, status) in enumerate(zip(ended, statuses, strict=True)):
        assert done.status == status, f"rank {rank}: status {done.status}\n{done.stdout}\n{done.stderr}"
    return ended[0]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def in_two(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call a function at module level in two processes that talk over gloo; return what both returned, rank 0 first."""
    port, ends = free_port(), [_SERVER.Pipe(duplex=False) for _ in range(2)]
    both = [_SERVER.Process(target=_join, args=(rank, port, ends[rank][1], function, arguments)) for rank in range(2)]
    for process in both:
        process.start()
    for _, own in ends:
        own.close()
    results = [theirs.recv() for theirs, _ in ends]
    for process in both:
        process.join()
    return results


def call(place: Path, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function at module level in a process with a working directory and a cache in `place`; return its result."""
    mine, theirs = _SERVER.Pipe(duplex=False)
    process = _SERVER.Process(target=_call, args=(str(place), theirs, function, arguments))
    process.start()
    theirs.close()
    result = mine.recv()
    process.join()
    return result


@contextlib.contextmanager
def talk(function: Callable[..., None], *arguments: Any) -> Iterator[tuple[BaseProcess, Connection]]:
    """Call a function at module level in a process of its own; give the process, and what talks with it.

    Args:
        function: Takes its end of a pipe, and what follows. It must have ended, or be about to, when the block ends;
            where the block fails, it is killed.
        arguments: What follows.
    """
    mine, theirs = _SERVER.Pipe()
    process = _SERVER.Process(target=function, args=(theirs, *arguments))
    process.start()
    theirs.close()
    try:
        yield process, mine
        process.join()
    finally:
        process.kill()
        process.join()
        mine.close()


class Serving:
    """In place of `subprocess.Popen` of the server of a study: its `main` in a warmed process, in this working directory.

    What it says of itself goes where this process says such things.
    """

    def __init__(self, words: Sequence[str], *, env: dict[str, str], **_: Any) -> None:
        (requests, to), (of, answers) = (_SERVER.Pipe(duplex=False) for _ in range(2))
        *_, module = words
        self._process = _SERVER.Process(target=_serve, args=(requests, answers, module, os.getcwd(), env))
        self._process.start()
        self.stdin, self.stdout = (
            os.fdopen(os.dup(end.fileno()), mode, buffering=0) for end, mode in ((to, "wb"), (of, "rb"))
        )
        for end in (requests, to, of, answers):
            end.close()

    @property
    def pid(self) -> int | None:
        """Its number."""
        return self._process.pid

    def wait(self) -> int | None:
        """Wait for its end; give its exit status."""
        self._process.join()
        return self._process.exitcode


def serve(patch: pytest.MonkeyPatch) -> None:
    """Let studies of this process have a warmed server."""
    patch.setattr("embedlab.study.check.subprocess", SimpleNamespace(PIPE=subprocess.PIPE, Popen=Serving))


def _serve(requests: Connection, answers: Connection, module: str, place: str, environment: dict[str, str]) -> None:
    os.setsid()
    for own, number in ((requests, 0), (answers, 1)):
        os.dup2(own.fileno(), number)
        own.close()  # what is forked from here must not hold it
    os.chdir(place)
    os.environ.update(environment)
    sys.exit(importlib.import_module(module).main())


def _call(place: str, results: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.chdir(place)
    os.environ.update(EMBEDLAB_CACHE=f"{place}/cache", HF_HUB_OFFLINE="1")
    results.send(function(*arguments))


def _join(rank: int, port: int, results: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    results.send(function(rank, *arguments))
    torch.distributed.destroy_process_group()


def _both(running: Sequence[Running]) -> list[Done]:
    """Wait for processes that need each other: when one fails, the others would wait for it in vain."""
    from multiprocessing.connection import wait

    left = {own.process.sentinel: own for own in running}
    while left:
        for sentinel in wait(list(left)):
            ended = left.pop(sentinel)
            ended.process.join()
            if ended.process.exitcode != 0:
                for other in left.values():
                    other.process.kill()
    return [own.wait() for own in running]


def _run(
    place: str,
    words: list[str],
    output: str,
    environment: dict[str, str],
    sabotage: Callable[..., None] | None,
    arguments: tuple[Any, ...],
) -> None:
    """Be the process: the command line, with its output in files."""
    os.chdir(place)
    os.environ.update(environment)
    for number, end in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{output}.{end}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w", buffering=1) for n in (1, 2))
    sys.argv = ["embedlab", *words]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    import torch

    torch.set_num_threads(1)
    from embedlab import cli

    if sabotage is not None:
        sabotage(*arguments)
    status = cli.main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(status)


# Sabotage ---------------------------------------------------------------------------------------------------


def patch(target: str, make: Callable[[Any], Any]) -> None:
    """Replace `module:Class.method` or `module:function` by what `make` returns for it."""
    module, _, path = target.partition(":")
    place: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        place = getattr(place, parent)
    setattr(place, name, make(getattr(place, name)))


def kill_at(target: str, number: int, after: bool = False) -> None:
    """Be killed by SIGKILL at the n-th call of a function, before or after it is done, but for the first time only.

    Args:
        target: As for `patch`.
        number: From 1.
        after: Whether that call is still done.
    """

    def make(function: Callable[..., Any]) -> Callable[..., Any]:
        calls = 0

        def deadly(*args: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **named)
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return deadly

    patch(target, make)


@contextlib.contextmanager
def stopped(running: Running) -> Any:
    """Leave no process behind, whatever the test finds."""
    try:
        yield running
    finally:
        if running.process.is_alive():
            running.process.kill()
        running.process.join()
