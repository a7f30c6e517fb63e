"""`python -m embedlab.training.server`: checks a study and starts its runs, so that they share one import of torch.

It reads requests from stdin and answers on stdout, one JSON object a line:

    {"id": 1, "do": "check", "strategies": [...]}                -> {"id": 1, "answer": [...]}
    {"id": 2, "do": "run", "arguments": [...], "environment": {...}, "log": "...", "threads": 2}
                                                                 -> {"id": 2, "pid": 71}, and at its end {"id": 2, "status": 0}

Each is done by a fork of this process, which itself does nothing but import: no thread and no state of a check or a run
is there when the next is forked. Each run leads a session of its own, and outlives this process.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import selectors
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from embedlab.errors import exit_status
from embedlab.source_hash import module_hashes

__all__ = ["main"]

READY: Final = b"."  # what a run says when signals reach it as they should
WARM: Final = ("embedlab.training.check", "lightning.pytorch.loggers", "pyarrow.parquet")

Request = Mapping[str, Any]


def main() -> int:
    """Serve until stdin ends; return the exit status of this process or of a run forked from it."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what an import prints is no answer
    here = os.getcwd()  # `python -m` puts it first: a user's folder must not hide an installed package
    sys.path[:] = [*(own for own in sys.path if own != here), here]
    for module in WARM:
        importlib.import_module(module)
    importlib.import_module("embedlab.training.cli").prepare()
    _hold_sources()
    request = _serve(answers)
    return 0 if request is None else _run(request["arguments"])


def _hold_sources() -> None:
    """Read the source of what was imported now: a file edited later is not what the forked runs compute with."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] == "embedlab" and file is not None:
            module_hashes(name, Path(file))


def _serve(answers: BinaryIO) -> Request | None:
    """Do what is asked for; return None at the end of stdin, and in a forked process the run it is there for."""
    awake, ended = os.pipe()
    for end in (awake, ended):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(ended)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored, which runs would inherit
    running, waiting = dict[int, int](), b""

    def tell(**answer: Any) -> None:
        answers.write(json.dumps(answer).encode() + b"\n")

    with selectors.DefaultSelector() as selector:
        for end in (0, awake):
            selector.register(end, selectors.EVENT_READ)
        while True:
            ready = {key.fd for key, _ in selector.select()}
            if awake in ready:
                os.read(awake, 4096)
                for pid in list(running):
                    gone, status = os.waitpid(pid, os.WNOHANG)
                    if gone:
                        tell(id=running.pop(pid), status=os.waitstatus_to_exitcode(status))
            if 0 not in ready:
                continue
            part = os.read(0, 1 << 16)
            if not part:
                return None
            *lines, waiting = (waiting + part).split(b"\n")
            for line in lines:
                request: Request = json.loads(line)
                if request["do"] == "check":
                    tell(id=request["id"], answer=_checked(request["strategies"]))
                    continue
                pid = _fork(request)
                if pid == 0:
                    answers.close()
                    for end in (awake, ended):
                        os.close(end)
                    return request
                running[pid] = request["id"]
                tell(id=request["id"], pid=pid)


def _checked(strategies: Sequence[Request]) -> Any:
    """Check strategies in a process of their own, but for macOS, whose system libraries do not outlive a fork."""
    check = importlib.import_module("embedlab.training.check").check
    if sys.platform == "darwin":
        return check(strategies)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            with os.fdopen(writer, "w") as file:
                json.dump(check(strategies), file)
        except BaseException:
            traceback.print_exc()  # its last line is what the study tells
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return json.loads(text) if text else None


def _fork(request: Request) -> int:
    """Fork the process of a run; return its pid here once signals reach it, and 0 there."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid != 0:
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        return pid
    os.close(reader)
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for own, number in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(own, number)
    os.close(log)
    os.close(nothing)
    os.write(writer, READY)
    os.close(writer)
    os.environ.update(request["environment"])
    if request["threads"] is not None:  # libgomp has read its variable long ago, processes of the run will read it
        os.environ["OMP_NUM_THREADS"] = str(request["threads"])
        importlib.import_module("torch").set_num_threads(request["threads"])
    return 0


def _run(arguments: Sequence[str]) -> int:
    """Be the process of a run, as if its command had been typed."""
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(line_buffering=True)
    # Lightning starts the other processes of a run by what this one was started by.
    sys.argv = ["embedlab", *arguments]
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("embedlab.__main__")
    if arguments[0] != "fit":  # what a finished run is measured by
        return int(importlib.import_module("embedlab.cli").main(list(arguments)))
    return exit_status(lambda: int(importlib.import_module("embedlab.training.cli").main(arguments)))


if __name__ == "__main__":
    sys.exit(main())
