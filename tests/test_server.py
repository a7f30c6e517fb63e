"""The process that checks studies and starts runs: real ones, and what happens when either side dies."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import psutil
import pytest
import yaml

import embedlab
from embedlab import runs
from embedlab.errors import UserError
from embedlab.study import check, compare
from embedlab.study.jobs import Job, Process
from tests import processes
from tests.studies import Gate, Watched, kill_and_wait, make_study

ROOT = Path(embedlab.__file__).parent.parent
STRATEGIES = Path(__file__).parents[1] / "configs" / "strategies"
# Stands where a run may be held: it says so at the first training batch, and goes on when the test lets it.
HOLD = """
import os, lightning

class Hold(lightning.Callback):
    def on_train_batch_start(self, *_):
        if os.path.exists("reached"):
            with open("reached", "w") as file:
                file.write(f"{os.getpid()}\\n")
            with open("gate", "rb", buffering=0) as file:
                file.read(1)
"""
STUDY = """
study: demo
protocol: protocol.yaml
backbone: small.yaml
seeds: [0, 1]
strategies:
  tfidf: {tfidf}
  freeze: {{config: {freeze}, seeds: [1], overrides: {{model.pretraining: null}}}}
  bitfit: {{config: {bitfit}, seeds: [1], overrides: {{trainer.callbacks: {{class_path: hold.Hold}}}}}}
  mean: {{config: {pooled}, seeds: [1]}}
  last: {{config: {pooled}, seeds: [1], overrides: {{model.pooling: embedlab.pooling.last, model.layer: 1}}}}
overrides: {{trainer.max_epochs: 2, trainer.check_val_every_n_epoch: 1, data.batch_size: 4}}
"""

pytestmark = pytest.mark.skipif(not check.FORKS, reason="runs are not forked here")


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, decoder_folder: Callable[[str], Path]
) -> Iterator[tuple[Path, check.Server]]:
    """A working directory with a study of shipped strategies, and the one process that serves nearly all tests here.

    It is warmed; a study that is a process of its own starts its server as users do.
    """
    folder = tmp_path_factory.mktemp("served")
    make_study(folder, str(decoder_folder("llama")))
    (folder / "hold.py").write_text(HOLD)
    names = {"tfidf": "tfidf", "freeze": "freeze", "bitfit": "sgpt_bi", "pooled": "pooled_decoder"}
    paths = {label: STRATEGIES / f"{name}.yaml" for label, name in names.items()}
    (folder / "study.yaml").write_text(STUDY.format(**paths))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("EMBEDLAB_CACHE", str(folder / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("PYTHONPATH", str(ROOT))
        processes.serve(patch)
        with check.server() as server:
            yield folder, server


def folder(label: str, seed: int = 1) -> Path:
    return runs.run_folder(Path("runs"), "demo", label, seed)


def compared(server: check.Server, *arguments: str) -> int:
    return compare.main(["study.yaml", *arguments], server=lambda: nullcontext(server))


def identities(label: str, seed: int) -> set[str]:
    """Return what every file of a run folder says its identity is."""
    result, status = runs.read_result(folder(label, seed)), runs.read_status(folder(label, seed))
    assert result is not None
    assert status is not None
    assert status.identity is not None
    return {result["identity"], status.identity, (folder(label, seed) / runs.IDENTITY).read_text()}


def test_a_study_is_checked_and_run(place: tuple[Path, check.Server], capsys: pytest.CaptureFixture[str]) -> None:
    """What the check says of a run is what the run says of itself, or it would not count as finished."""
    assert compared(place[1]) == 0
    assert "6 of 6 runs finished" in capsys.readouterr().out
    for label, seed in (("tfidf", 0), ("tfidf", 1), ("freeze", 1), ("bitfit", 1)):
        assert len(identities(label, seed)) == 1, label
    assert identities("tfidf", 0) != identities("tfidf", 1)
    log = (folder("bitfit") / runs.LOG).read_text()
    assert log.count("run folder: runs/demo/bitfit/seed-1\n") == 1, "written once, by the process itself"
    assert yaml.safe_load((folder("freeze") / runs.OVERRIDES).read_text())["model"] == {
        "init_args": {"pretraining": None}
    }
    assert yaml.safe_load((folder("freeze") / runs.CONFIG).read_text())["trainer"]["max_epochs"] == 2
    seconds = {label: (runs.read_result(folder(label)) or {})["seconds"] for label in ("mean", "last")}
    assert seconds["mean"]["features_found"] == 0 < seconds["mean"]["features"]
    assert seconds["last"]["features_found"] >= seconds["last"]["features"] > 0, "what the first has read for both"
    assert compared(place[1], "trainer.log_every_n_steps=3") == 0
    out = capsys.readouterr().out
    assert "6 finished, 0 to run" in out
    assert "start " not in out


def test_a_fault_is_found_there(place: tuple[Path, check.Server]) -> None:
    with pytest.raises(
        UserError,
        match=r"^tfidf, freeze, bitfit, mean, last: `data\.train\.path` must be .* 'gone\.tsv' is not there, seen from",
    ):
        compared(place[1], "data.train.path=gone.tsv", "--dry-run")


def test_a_check_leaves_nothing_behind_for_the_next(place: tuple[Path, check.Server]) -> None:
    """Each is done by a process of its own: an edited class is read anew."""
    for name in ("width", "breadth"):
        (place[0] / "edited.py").write_text(
            "from study_methods import Simple\n"
            f"class Edited(Simple):\n    def __init__(self, {name}: int = 3): super().__init__()\n"
        )
        (place[0] / "edited.yaml").write_text("model: {class_path: edited.Edited}\n")
        wanted = {
            "files": ["protocol.yaml", "edited.yaml"],
            "backbone": None,
            "shared": {},
            "own": {f"model.{name}": 4},
        }
        (answer,) = place[1].check([{**wanted, "seeds": [0], "places": ["--run_dir", "x"]}])
        assert answer["faults"] == []


@pytest.mark.slow  # by default: `test_what_was_loaded_counts_not_what_the_file_became`
def test_a_source_edited_later_is_not_what_runs(
    place: tuple[Path, check.Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs are forked with what was imported, so what they say of themselves must be that."""
    shutil.copytree(ROOT / "embedlab", tmp_path / "embedlab", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(check, "subprocess", subprocess)
    wanted = {"files": ["protocol.yaml", str(STRATEGIES / "tfidf.yaml")], "backbone": None, "shared": {}, "own": {}}
    with check.server() as server:
        (before,) = server.check([{**wanted, "seeds": [0], "places": ["--run_dir", "x"]}])
        with open(tmp_path / "embedlab" / "strategies" / "tfidf.py", "a") as file:
            file.write("\nraise RuntimeError\n")  # which would be told, were it imported
        (after,) = server.check([{**wanted, "seeds": [0], "places": ["--run_dir", "x"]}])
    assert before["faults"] == after["faults"] == []
    assert before["identities"] == after["identities"] != {}


def test_threads_are_shared_out(place: tuple[Path, check.Server]) -> None:
    (place[0] / "threads.py").write_text(
        "import os, torch\nfrom study_methods import Simple\n"
        "class Threads(Simple):\n    def __init__(self):\n        os._exit(10 + torch.get_num_threads())\n"
    )
    (place[0] / "out").mkdir()
    arguments = ["fit", "-c", "protocol.yaml", "--model", "threads.Threads", "--run_dir", "out"]
    started = place[1].start(Job("threads", 0, Path("out"), "x", arguments), 3)
    with suppress(ProcessLookupError):
        waited(started.pid)
    while (status := started.poll()) is None:  # the server is told of it by the system, and we by the server
        place[1].read(wait=True)
    assert status == 13


def test_where_nothing_is_forked_a_run_is_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "FORKS", False)
    monkeypatch.setattr(check, "spawn", lambda job, threads: (job.label, threads))
    with check.server() as server:
        started: object = server.start(Job("x", 0, Path("x"), "x", []), 2)
    assert started == ("x", 2)


def waited(pid: int) -> None:
    """Wait for a process that need not be a child of this one (Linux)."""
    process = os.pidfd_open(pid)
    try:
        select.select([process], [], [])
    finally:
        os.close(process)


@pytest.fixture
def gate(place: tuple[Path, check.Server]) -> Iterator[Gate]:
    """Where a run with `hold.Hold` stands until the test lets it go on."""
    gate = Gate(place[0])
    yield gate
    gate.close()
    for name in ("reached", "gate"):
        (place[0] / name).unlink(missing_ok=True)


ARGUMENTS = ("--only", "bitfit", "--seeds", "1")


def release(gate: Gate) -> None:
    """Let the run at the gate go on to its end."""
    Path("reached").unlink()
    gate.open()


def test_interruption_stops_what_was_forked(
    place: tuple[Path, check.Server], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        gate.arrival()
        raise KeyboardInterrupt

    shutil.rmtree(folder("bitfit"))
    screen = Watched(["start   bitfit seed 1"], interrupt)
    monkeypatch.setattr(compare, "console", screen.console)
    with pytest.raises(KeyboardInterrupt):
        compared(place[1], *ARGUMENTS)
    status = runs.read_status(folder("bitfit"))
    assert status is not None
    assert (status.state, runs.is_alive(status)) == ("interrupted", False)
    assert "the same command resumes where it stopped" in (folder("bitfit") / runs.LOG).read_text()


@pytest.mark.slow  # by default: `test_killed_in_the_middle_then_run_again`, with runs that are stand-ins
def test_the_study_killed_and_the_run_taken_over(place: tuple[Path, check.Server], gate: Gate) -> None:
    """Its server ends, its run does not, and the next study watches that."""
    shutil.rmtree(folder("bitfit"))
    words = [sys.executable, "-m", "embedlab", "compare", "study.yaml", *ARGUMENTS]
    study = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = int(gate.arrival())
    server = psutil.Process(run).ppid()
    ended = os.pidfd_open(server)
    study.kill()
    study.wait()
    select.select([ended], [], [])
    os.close(ended)
    status = runs.read_status(folder("bitfit"))
    assert status is not None
    assert (status.pid, runs.is_alive(status)) == (run, True)
    started = Process(Job("bitfit", 1, folder("bitfit"), str(status.identity), []), None)
    assert started.is_alive()
    release(gate)
    waited(run)
    assert compared(place[1], *ARGUMENTS, "--dry-run") == 0
    assert len(identities("bitfit", 1)) == 1


def test_the_server_killed(place: tuple[Path, check.Server], gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last test of this file, as it ends the server of all: the run goes on, and its folder tells how it ended."""
    shutil.rmtree(folder("bitfit"))

    def kill() -> None:
        gate.arrival()
        kill_and_wait(place[1].pid)
        release(gate)

    screen = Watched(["start   bitfit seed 1"], kill)
    monkeypatch.setattr(compare, "console", screen.console)
    assert compared(place[1], *ARGUMENTS) == 0
    assert "the process that starts runs has died" in screen.getvalue()
    assert len(identities("bitfit", 1)) == 1
