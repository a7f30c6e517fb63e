"""A small study for tests: two strategies, and a script in place of `embedlab fit`."""

from __future__ import annotations

import ast
import io
import json
import os
import select
import signal
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from embedlab.runs.code import shared_code
from embedlab.runs.identity import content_hash
from embedlab.study.jobs import Job, Spawned, spawn
from embedlab.yaml_files import read_yaml

STRATEGIES = """
    from embedlab.strategies.base import Embedder
    from embedlab.backbone import Backbone

    class Method(Embedder):
        def __init__(self, backbone: Backbone, width: int = 3) -> None:
            super().__init__()
            self.backbone = backbone

        def embed(self, texts, role=None): ...

    class Simple(Embedder):
        def __init__(self, depth: int = 1) -> None:
            super().__init__()

        def embed(self, texts, role=None): ...
    """

# Reads how to behave from control.json: {label: "fail" | "die" | "wait" | "damage" | "refuse" | "nothing" | "other"}.
FAKE = """
    import hashlib, json, os, pathlib, signal, socket, sys, time
    a = dict(zip(sys.argv[2::1], sys.argv[3::1]))
    configs = [pathlib.Path(b).read_text() for a, b in zip(sys.argv, sys.argv[1:]) if a == "-c"]
    settings = hashlib.sha256(json.dumps(configs).encode()).hexdigest()
    folder, label, seed = pathlib.Path(a["--run_dir"]), a["--label"], int(a["--seed_everything"])
    here = pathlib.Path(__file__).parent
    with open(here / "starts.txt", "a") as file:
        file.write(f"{label} {seed}\\n")
    print("hello from", label)
    def write(name, content):
        part = folder / (name + ".new")
        part.write_text(json.dumps(content))
        part.replace(folder / name)
    control = here / "control.json"
    how = json.loads(control.read_text()).get(label) if control.exists() else None
    if how == "refuse":
        sys.exit("`run_dir` must be free")
    status = {"state": "running", "started": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
              "pid": os.getpid(), "host": socket.gethostname(), "identity": a["--identity"]}
    write("status.json", status)
    write("progress.json", {"phase": "training", "done": 1, "total": 4, "seconds_left": 30.0})
    if how == "wait":
        with open(here / "reached", "w") as file:
            file.write(f"{label} {seed}\\n")
        with open(here / "gate", "rb", buffering=0) as file:
            file.read(1)
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "damage":
        (folder / "result.json").write_text("{")
        sys.exit(0)
    if how == "nothing":
        sys.exit(0)
    if how == "fail":
        sys.exit("RuntimeError: out of luck")
    identity = a["--identity"] if how != "other" else "of files that were changed meanwhile"
    score = 0.5 + len(label) / 100 + seed / 1000
    write("result.json", {
        "schema_version": 1, "strategy": "Method", "label": label, "study": a["--study"], "seed": seed,
        "identity": identity, "settings": settings, "backbone": {"name": "small"},
        "metrics": {"test/stsb": {"spearman": score, "pearson": score, "pairs": 9, "undefined": None}},
        "code": json.loads((here / "code.json").read_text()),
        "parameters": {"trainable": 10}, "seconds": {"train": 1.0, "score": 0.5, "total": 1.5}, "notes": []})
    write("status.json", {**status, "state": "done"})
    """

STUDY = """
    study: demo
    protocol: protocol.yaml
    backbone: small.yaml
    seeds: [0, 1]
    strategies:
      method: method.yaml
      simple: simple.yaml
    """

PROTOCOL = """
    data:
      train: {path: pairs.tsv}
      validation: {path: pairs.tsv}
      test: {own: {path: pairs.tsv}}
      batch_size: 8
    trainer: {max_epochs: 2, logger: false, enable_model_summary: false}
    """


def make_study(folder: Path, decoder: str = "small") -> None:
    """Write the study with all its files.

    Args:
        folder: Where.
        decoder: What its backbone names.
    """
    pairs = [f"A man plays tune {i}.\tA woman plays tune {i % 3}.\t{i / 8}" for i in range(8)]
    for name, content in {
        "study_methods.py": STRATEGIES,
        "fake.py": FAKE,
        "code.json": json.dumps(shared_code()),
        "study.yaml": STUDY,
        "pairs.tsv": "\n".join(["sentence1\tsentence2\tscore", *pairs]) + "\n",
        "protocol.yaml": PROTOCOL,
        "small.yaml": f"model: {{init_args: {{backbone: {{name: {decoder}}}}}}}\n",
        "method.yaml": "model: {class_path: study_methods.Method}\n",
        "simple.yaml": "model: {class_path: study_methods.Simple}\n",
    }.items():
        (folder / name).write_text(textwrap.dedent(content))


class Fake:
    """In place of the process that checks a study and starts its runs: finds nothing wrong, and starts the script."""

    lost = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check(self, strategies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Accept everything; what decides a run are its files, its overrides, its seed, and the strategies' code."""
        code = ast.dump(ast.parse((self.folder / "study_methods.py").read_text()))
        answers = []
        for wanted in strategies:
            files, shared = list(wanted["files"]), dict(wanted["shared"])
            if "Method" in Path(files[-1]).read_text():
                files.append(wanted["backbone"])
            else:
                shared = {key: value for key, value in shared.items() if not key.startswith("model.backbone")}
            overrides = dict(sorted({**shared, **wanted["own"]}.items()))
            decides = [[read_yaml(Path(file)) for file in files], overrides, code]
            identities = {str(seed): content_hash([*decides, seed]) for seed in wanted["seeds"]}
            answers.append(
                {"files": files, "overrides": overrides, "content": overrides, "identities": identities}
                | {"wish": None, "faults": []}
            )
        return answers

    def start(self, job: Job, threads: int | None) -> Spawned:
        """Start the script."""
        job = replace(job, arguments=[*job.arguments, "--identity", job.identity])
        return spawn(job, threads, [sys.executable, str(self.folder / "fake.py")])


class Judge(Fake):
    """In place of that process: checks as it does, but in this one, and starts the script."""

    def check(self, strategies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Check with the parser itself, on what comes out of a pipe."""
        from embedlab.training.check import check

        answers: list[dict[str, Any]] = json.loads(json.dumps(check(json.loads(json.dumps(strategies)))))
        return answers


def fake(folder: Path) -> Callable[[], AbstractContextManager[Fake]]:
    """Return how the stand-in is had."""
    return lambda: nullcontext(Fake(folder))


def control(folder: Path, **how: str) -> None:
    """Tell the script how to behave for a label."""
    (folder / "control.json").write_text(json.dumps(how))


class Gate:
    """Where runs told to `wait` stand until the test lets them go on; no clock has a part in it.

    Both ends of both pipes are held here, so that nothing is lost, and so that whoever waits goes on once the test has
    ended, however it did.
    """

    def __init__(self, folder: Path) -> None:
        for name in ("reached", "gate"):
            os.mkfifo(folder / name)
        self._reached = os.fdopen(os.open(folder / "reached", os.O_RDWR), "rb", buffering=0)
        self._gate = os.open(folder / "gate", os.O_RDWR)

    def arrival(self) -> str:
        """Wait for the next run to stand at the gate; give its label and seed."""
        return self._reached.readline().decode().strip()

    def open(self, number: int = 1) -> None:
        """Let that many runs go on."""
        os.write(self._gate, b"." * number)

    def close(self) -> None:
        """Let all others go on."""
        self._reached.close()
        os.close(self._gate)


class Watched(io.StringIO):
    """What is printed, with something to do as soon as all of some texts were."""

    def __init__(self, texts: list[str], then: Callable[[], object]) -> None:
        super().__init__()
        self._texts, self._then, self.came = texts, then, False

    def write(self, text: str) -> int:
        count = super().write(text)
        if not self.came and all(own in self.getvalue() for own in self._texts):
            self.came = True
            self._then()
        return count

    def console(self, terminal: bool = False) -> Console:
        """Give a console that prints here."""
        return Console(file=self, force_terminal=terminal, width=180, highlight=False)


def kill_and_wait(pid: int) -> None:
    """Kill a process that need not be a child of this one, and wait until it has ended (Linux)."""
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        select.select([process], [], [])
    finally:
        os.close(process)


def starts(folder: Path) -> list[str]:
    """Give what was started since the last call."""
    path = folder / "starts.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines
