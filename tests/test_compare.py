"""Studies under way: what runs, what is skipped, and what happens to runs that fail, stop or change."""

from __future__ import annotations

import errno
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

import embedlab
from embedlab import runs
from embedlab.errors import UserError
from embedlab.study import compare, jobs, launcher
from tests.studies import Fake, Gate, Watched, control, fake, kill_and_wait, make_study, starts


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a study of two strategies."""
    make_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setattr(launcher, "POLL", 0.01)  # there is little to wait for
    return tmp_path


@pytest.fixture
def gate(here: Path) -> Iterator[Gate]:
    """Where runs told to wait stand until the test lets them go on."""
    gate = Gate(here)
    yield gate
    gate.close()


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run compare on the study; give its exit status and what it printed."""

    def call(*arguments: str, heartbeat: float = 15.0) -> tuple[int, str]:
        status = compare.main(["study.yaml", *arguments], server=fake(here), heartbeat=heartbeat)
        return status, capsys.readouterr().out

    return call


def folder(label: str, seed: int = 0) -> Path:
    return runs.run_folder(Path("runs"), "demo", label, seed)


def state(label: str, seed: int = 0) -> Any:
    status = runs.read_status(folder(label, seed))
    assert status is not None
    return status.state


Run = Callable[..., tuple[int, str]]


# Running ----------------------------------------------------------------------------------------------------


def test_all_runs_then_nothing_to_do(here: Path, run: Run) -> None:
    status, out = run()
    assert status == 0
    assert starts(here) == ["method 0", "simple 0", "method 1", "simple 1"]
    assert out.splitlines()[0] == "demo: 4 runs in runs/demo, 0 finished, 4 to run"
    assert "done    method seed 0 [1/4] in " in out
    assert "Spearman 56.00 on stsb" in out
    assert out.splitlines()[-1] == "written: runs/demo/report.md"
    assert "56.05 ± 0.07" in out
    assert "56.05 ± 0.07" in Path("runs/demo/report.md").read_text()
    assert (folder("method") / runs.LOG).read_text() == "hello from method\n"
    before = (folder("method") / runs.RESULT).stat().st_mtime_ns
    status, out = run()
    assert status == 0
    assert starts(here) == []
    assert "4 finished, 0 to run" in out
    assert "56.05 ± 0.07" in out
    assert (folder("method") / runs.RESULT).stat().st_mtime_ns == before


def test_what_is_started_is_what_the_contract_says(here: Path, run: Run) -> None:
    status, out = run("--dry-run", "--seeds", "3", "trainer.max_epochs=1", "model.backbone.dtype=float32")
    assert status == 0
    method, simple = [shlex.split(line) for line in out.splitlines() if " fit " in line]
    files = ["-c", "protocol.yaml", "-c", "method.yaml", "-c", "small.yaml"]
    assert method[:8] == ["embedlab", "fit", *files]
    assert method[8:10] == ["--model.backbone.dtype=float32", "--trainer.max_epochs=1"]
    assert method[10::2] == ["--seed_everything", "--run_dir", "--study", "--label"]
    assert method[11::2] == ["3", "runs/demo/method/seed-3", "demo", "method"]
    assert simple[2:6] == ["-c", "protocol.yaml", "-c", "simple.yaml"]
    assert [line.strip() for line in out.splitlines() if "overrides: " in line] == [
        "overrides: model.backbone.dtype=float32 trainer.max_epochs=1",
        "overrides: trainer.max_epochs=1",
    ]
    assert not Path("runs").exists()


def test_what_older_code_finished_is_run_again_only_when_asked(here: Path, run: Run) -> None:
    now = (here / "code.json").read_text()
    (here / "code.json").write_text(json.dumps({**json.loads(now), "packing": "of another time"}))
    run("--only", "simple")
    (here / "code.json").write_text(now)
    run("--only", "method")
    starts(here)
    _, out = run()
    assert starts(here) == []
    assert "4 finished, 0 to run" in out
    assert "older code made 2 runs of these; --rerun-older makes them again" in out.splitlines()
    _, out = run("--dry-run", "--rerun-older")
    assert "2 finished, 2 to run" in out
    assert sorted(line.split()[0] for line in out.splitlines() if " seed " in line) == ["finished"] * 2 + ["older"] * 2
    old = (folder("simple") / runs.RESULT).read_text()
    _, out = run("--rerun-older")
    assert starts(here) == ["simple 0", "simple 1"]
    assert "older code" not in out
    (aside,) = folder("simple").parent.glob("seed-0.superseded-*")
    assert (aside / runs.RESULT).read_text() == old
    run("--rerun-older")
    assert starts(here) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_while_a_run_is_started_leaves_none_behind(here: Path, gate: Gate, number: signal.Signals) -> None:
    """What was started is known to the study only once the process that starts it has answered."""

    class Interrupted(Fake):
        def start(self, job: jobs.Job, threads: int | None) -> jobs.Spawned:
            own = super().start(job, threads)
            gate.arrival()
            os.kill(os.getpid(), number)
            return own

    control(here, method="wait", simple="wait")
    with pytest.raises(KeyboardInterrupt):
        compare.main(["study.yaml"], server=lambda: nullcontext(Interrupted(here)))
    status = runs.read_status(folder("method"))
    assert status is not None
    assert (status.state, runs.is_alive(status)) == ("interrupted", False)
    assert starts(here) == ["method 0"]


def test_a_run_folder_says_what_was_asked_for(here: Path, run: Run) -> None:
    arguments = ("--only", "simple", "--seeds", "0")
    run(*arguments, "trainer.max_epochs=1")
    overrides = folder("simple") / runs.OVERRIDES
    assert yaml.safe_load(overrides.read_text()) == {"trainer.max_epochs": 1}
    run(*arguments)
    assert not overrides.exists()


def test_what_was_asked_for_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = jobs.Job("simple", 0, tmp_path / "run", "0123", [], content={"trainer": {"max_epochs": 1}})
    compare._make_ready(job)
    overrides, write = tmp_path / "run" / runs.OVERRIDES, Path.write_text

    def full(self: Path, text: str, **how: Any) -> int:
        if runs.OVERRIDES not in self.name:
            return write(self, text, **how)
        write(self, text[:5], **how)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        compare._make_ready(job)
    assert yaml.safe_load(overrides.read_text()) == job.content


def test_dry_run_says_what_is_finished(here: Path, run: Run) -> None:
    run("--only", "simple", "--seeds", "0")
    starts(here)
    _, out = run("--dry-run")
    assert [line.split()[0] for line in out.splitlines() if " seed " in line] == [
        "new",
        "finished",
        "new",
        "new",
    ]
    assert starts(here) == []


def test_a_changed_file_reruns_exactly_what_changed(here: Path, run: Run) -> None:
    run()
    starts(here)
    (here / "method.yaml").write_text("# a comment\nmodel: {class_path: study_methods.Method}\n")
    run()
    assert starts(here) == []
    old = {seed: (folder("method", seed) / runs.RESULT).read_text() for seed in (0, 1)}
    identity = json.loads(old[0])["identity"]
    (here / "method.yaml").write_text("model: {class_path: study_methods.Method, init_args: {width: 5}}\n")
    status, out = run("--seeds", "0")
    assert status == 0
    assert starts(here) == ["method 0"]
    aside = folder("method").with_name(f"seed-0.superseded-{identity[:8]}")
    assert (aside / runs.RESULT).read_text() == old[0]
    assert (folder("method", 1) / runs.RESULT).read_text() == old[1]
    assert "outdated: method seed 1" in out
    table = Path("runs/demo/report.md").read_text()
    assert "superseded" not in table
    assert all(f"| method ({number}) | small | 1 |" in table for number in (1, 2)), "two settings, two rows"
    run()
    assert "| method | small | 2 |" in Path("runs/demo/report.md").read_text()
    assert starts(here) == ["method 1"]


def test_a_changed_strategy_of_ones_own_reruns(here: Path, run: Run) -> None:
    run("--seeds", "0")
    starts(here)
    with open(here / "study_methods.py", "a") as file:
        file.write("CONSTANT = 2\n")
    run("--seeds", "0")
    assert starts(here) == ["method 0", "simple 0"]


def test_the_backbone_matters_only_to_who_has_one(here: Path, run: Run) -> None:
    run("--seeds", "0")
    starts(here)
    (here / "small.yaml").write_text("model: {init_args: {backbone: {name: other}}}\n")
    run("--seeds", "0")
    assert starts(here) == ["method 0"]


def test_a_failure_does_not_stop_the_others(here: Path, run: Run) -> None:
    control(here, method="fail")
    status, out = run("--seeds", "0")
    assert status == 1
    assert starts(here) == ["method 0", "simple 0"]
    assert "FAILED  method seed 0 [1/2]" in out
    end = out[out.index("demo: 1 of 2 runs finished") :]
    assert "failed: method, seed 0: RuntimeError: out of luck (see runs/demo/method/seed-0/log.txt)" in end
    assert state("method") == "failed"
    control(here)
    status, _ = run("--seeds", "0")
    assert status == 0
    assert starts(here) == ["method 0"]
    assert state("method") == "done"


@pytest.mark.parametrize(("how", "reason"), [("die", "killed by SIGKILL"), ("nothing", "ended without a result")])
def test_a_process_that_says_nothing_is_a_failure(here: Path, run: Run, how: str, reason: str) -> None:
    control(here, simple=how)
    status, out = run("--seeds", "0")
    assert status == 1
    assert reason in out
    found = runs.read_status(folder("simple"))
    assert found is not None
    assert (found.state, reason in (found.error or "")) == ("failed", True)


def test_a_run_whose_files_were_changed_after_the_check_is_finished(here: Path, run: Run) -> None:
    """It says so; the next study tells whether it is the run that is wanted then."""
    control(here, method="other")
    status, out = run("--seeds", "0")
    assert (status, state("method"), "FAILED" in out) == (0, "done", False)
    lines = {line.split()[1]: line for line in out.splitlines() if line.startswith("done ")}
    note = "; its files were changed after the check, so it is another run than was planned"
    assert lines["method"].endswith(f"Spearman 56.00 on stsb{note}")
    assert note not in lines["simple"]
    assert "2 of 2 runs finished" in out
    assert "changed   method seed 0" in run("--dry-run", "--seeds", "0")[1]


def test_a_command_that_cannot_start_leaves_nothing_running(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "no-such-program")
    with pytest.raises(FileNotFoundError):
        compare.main(["study.yaml"], server=fake(here))


def test_several_at_once(here: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the four is held until all four have been shown to be under way."""
    control(here, method="wait", simple="wait")
    names = [f"{label} seed {seed}" for label in ("method", "simple") for seed in (0, 1)]
    screen = Watched([f"running {name}: training 1/4, 30 s left" for name in names], lambda: gate.open(4))
    monkeypatch.setattr(compare, "console", screen.console)
    assert compare.main(["study.yaml", "--jobs", "4"], server=fake(here), heartbeat=0.0) == 0
    assert sorted(starts(here)) == ["method 0", "method 1", "simple 0", "simple 1"]
    assert "4 of 4 runs finished" in screen.getvalue()


def test_no_more_at_once_than_asked_for(here: Path, run: Run) -> None:
    _, out = run("--jobs", "1")
    words = [line.split()[0] for line in out.splitlines() if line.startswith(("start", "done"))]
    assert words == ["start", "done"] * 4


def test_what_is_typed_concerns_only_who_runs(here: Path, run: Run) -> None:
    """A strategy that cannot take it is in no one's way, and what it finished before stays as it was asked for."""
    run("--only", "simple", "--seeds", "0")
    status, out = run("--only", "method", "--seeds", "0", "trainer.max_epochs=0", "--dry-run")
    assert status == 0, out
    assert "new       method seed 0" in out
    _, out = run("--seeds", "0", "--dry-run", "--only", "simple")
    assert "finished  simple seed 0" in out


def test_only_and_seeds(here: Path, run: Run) -> None:
    assert run("--only", "simple", "--seeds", "2,3")[0] == 0
    assert starts(here) == ["simple 2", "simple 3"]
    run("--only", "simple,method", "--seeds", "4", "trainer.max_epochs=1")
    assert starts(here) == ["method 4", "simple 4"]
    _, out = run("--only", "simple", "--seeds", "4", "--trainer.max_epochs", "1", "--runs", "elsewhere", "--dry-run")
    assert "elsewhere/demo/simple/seed-4" in out
    assert "overrides: trainer.max_epochs=1" in out


def test_a_damaged_run_matters_only_to_who_asks_for_it(here: Path, run: Run) -> None:
    run("--seeds", "0")
    starts(here)
    (folder("method") / runs.RESULT).unlink()
    (folder("method") / runs.RESULT).mkdir()
    status, out = run("--only", "simple")
    assert (status, starts(here)) == (0, ["simple 1"])
    assert out.splitlines()[-1] == "written: runs/demo/report.md"
    assert len([line for line in out.splitlines() if line.startswith("failed: method, seed 0: ")]) == 1
    for more in ([], ["--dry-run"]):
        with pytest.raises(UserError, match="method/seed-0/result.json must be a file .*; move it away") as error:
            run(*more)
        assert str(error.value).count("\n") == 0
    assert starts(here) == []


@pytest.mark.parametrize("text", ["{", '{"state": "gone"}', None])
def test_a_whole_result_says_that_a_run_is_finished(here: Path, run: Run, text: str | None) -> None:
    run("--seeds", "0")
    starts(here)
    (folder("method") / runs.STATUS).unlink()
    (folder("method") / runs.STATUS).mkdir() if text is None else (folder("method") / runs.STATUS).write_text(text)
    for more in ([], ["--dry-run"]):
        status, out = run("--seeds", "0", *more)
        assert (status, starts(here)) == (0, [])
        told = [line for line in out.splitlines() if line.startswith("warning: ")]
        assert len(told) == 1
        assert told[0].startswith(
            "warning: method seed 0 is finished, as its result.json says, but runs/demo/method/seed-0/"
        )
        assert "failed" not in out
    status, out = run("--seeds", "0", "trainer.max_epochs=1")  # another run: moved aside as ever
    assert (status, starts(here)) == (0, ["method 0", "simple 0"])
    assert len([*folder("method").parent.glob(f"seed-0{runs.SUPERSEDED}*")]) == 1


def test_a_run_that_is_damaged_on_the_way_ends_as_a_failure(here: Path, run: Run) -> None:
    control(here, method="damage")
    status, out = run("--seeds", "0")
    assert status == 1
    assert starts(here) == ["method 0", "simple 0"]
    assert "FAILED  method seed 0 [1/2]" in out
    *_, written, following = out.splitlines()
    assert written == "written: runs/demo/report.md"
    assert following == "next: mend what failed and give the same command again; what is finished is kept"


@pytest.mark.parametrize("typed", [("--seeds", "3"), ("--seeds=3",), ("--seeds", "3", "--only", "simple")])
def test_a_study_of_one_seed_ends_with_the_command_for_more(here: Path, run: Run, typed: tuple[str, ...]) -> None:
    _, out = run(*typed)
    others = " --only simple" if "--only" in typed else ""
    said = f"next: embedlab compare study.yaml{others} --seeds 3 4 5    # three seeds; what is finished is kept"
    assert out.splitlines()[-1] == said
    status, out = run(*shlex.split(said.partition("study.yaml ")[2].partition(" #")[0]))
    assert status == 0
    assert out.splitlines()[-1] == "written: runs/demo/report.md"


def test_overrides_from_near_beat_those_from_afar(here: Path, run: Run) -> None:
    with open(here / "study.yaml", "a") as file:
        file.write("overrides: {trainer: {max_epochs: 5, precision: 32-true}, data.batch_size: 4}\n")
    (here / "study.yaml").write_text(
        (here / "study.yaml")
        .read_text()
        .replace(
            "method: method.yaml",
            "method: {config: method.yaml, overrides: {data.batch_size: 2, model.width: null}}",
        )
    )
    _, out = run("--dry-run", "--seeds", "0", "--override", "trainer.max_epochs=7")
    method, simple = [line.split()[1:] for line in out.splitlines() if "overrides: " in line]
    assert method == [
        "data.batch_size=2",
        "model.width=null",
        "trainer.max_epochs=7",
        "trainer.precision=32-true",
    ]
    assert simple == ["data.batch_size=4", "trainer.max_epochs=7", "trainer.precision=32-true"]


def test_a_wider_option_of_a_strategy_leaves_no_part_of_what_all_runs_set(here: Path, run: Run) -> None:
    own = "{data.train: {path: other.tsv, limit: 2}, model.inner: null}"
    text = (here / "study.yaml").read_text()
    text = text.replace("method: method.yaml", f"method: {{config: method.yaml, overrides: {own}}}")
    (here / "study.yaml").write_text(
        f"{text}overrides: {{model.inner.b: 1, data.train.limit: 3, data.train.split: a}}\n"
    )
    _, out = run("--dry-run", "--seeds", "0", "--only", "method", "--data.train.split", "b")
    (line,) = [line for line in out.splitlines() if "overrides: " in line]
    train = """'data.train={"path": "other.tsv", "limit": 2}'"""
    assert line.strip() == f"overrides: {train} data.train.split=b model.inner=null"


def test_what_is_typed_beats_what_a_strategy_overrides(here: Path, run: Run) -> None:
    own = "{data.batch_size: 2, model.inner.a: 1, model.other.a: 1, trainer.callbacks+: x, trainer.plugins: y}"
    text = (here / "study.yaml").read_text()
    text = text.replace("method: method.yaml", f"method: {{config: method.yaml, overrides: {own}}}")
    (here / "study.yaml").write_text(f"{text}overrides: {{model.inner.b: 1, data.batch_size: 3}}\n")
    typed = ("data.batch_size=9", "model.inner=null", "trainer.callbacks=z", "--trainer.plugins+", "w")
    _, out = run("--dry-run", "--seeds", "0", "--only", "method", *typed)
    (line,) = [line.split()[1:] for line in out.splitlines() if "overrides: " in line]
    left = ["model.other.a=1", "trainer.callbacks=z", "trainer.plugins=y", "trainer.plugins+=w"]
    assert line == ["data.batch_size=9", "model.inner=null", *left]


def test_a_dead_running_is_repaired_and_rerun(here: Path, run: Run) -> None:
    run("--seeds", "0")
    starts(here)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for label in ("method", "simple"):
        runs.write_status(
            folder(label), runs.Status("running", runs.now(), None, gone.pid, os.uname().nodename, None, "x")
        )
    (folder("method") / runs.RESULT).unlink()
    _, out = run("--seeds", "0", "--only", "simple")
    assert "failed: method, seed 0: the process died" in out
    assert (state("method"), state("simple")) == ("failed", "done")
    assert starts(here) == []
    run("--seeds", "0")
    assert starts(here) == ["method 0"]


def test_what_was_begun_and_queued_again_is_moved_aside_once_it_changes(here: Path, run: Run) -> None:
    run("--seeds", "0")
    (folder("method") / runs.RESULT).unlink()
    (folder("method") / runs.IDENTITY).touch()
    runs.mark(folder("method"), "queued", identity="of other settings")
    _, out = run("--dry-run", "--seeds", "0", "--only", "method")
    assert "changed   method seed 0" in out
    run("--seeds", "0", "--only", "method")
    assert state("method") == "done"
    assert not runs.was_begun(folder("method"))


# Stopped in the middle --------------------------------------------------------------------------------------


def driver(here: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start compare in a process of its own, as the command line would."""
    code = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest may run in the background
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # or under nohup
sys.path.insert(0, {str(Path(embedlab.__file__).parent.parent)!r})
from embedlab import cli
from embedlab.study import compare
real = compare.main
from tests.studies import fake
from pathlib import Path
compare.main = lambda arguments: real(arguments, server=fake(Path({str(here)!r})))
sys.exit(cli.main(["compare", "study.yaml", *{list(arguments)!r}]))
"""
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=here
    )


@pytest.fixture
def stopped(here: Path, gate: Gate) -> Iterator[subprocess.Popen[str]]:
    """A study with its first run finished and its second under way."""
    control(here, simple="wait")
    process = driver(here, "--seeds", "0")
    assert process.stdout is not None
    assert any(line.startswith("start   simple seed 0") for line in process.stdout), "it knows of its second run"
    assert gate.arrival() == "simple 0"
    yield process
    process.kill()
    process.communicate()
    status = runs.read_status(folder("simple"))
    if status is not None and status.pid is not None and runs.is_alive(status):
        os.kill(status.pid, signal.SIGKILL)


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the end of another's child is waited for by pidfd")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interruption_stops_the_children_and_resumes(
    here: Path, run: Run, stopped: subprocess.Popen[str], number: signal.Signals
) -> None:
    child = runs.read_status(folder("simple"))
    assert child is not None
    stopped.send_signal(number)
    _, err = stopped.communicate()
    assert stopped.returncode == 130
    assert "resumes" in err
    assert not runs.is_alive(child)
    found = runs.read_status(folder("simple"))
    assert found is not None
    assert (found.state, found.error) == ("interrupted", None)
    control(here)
    starts(here)
    assert "interrupted: simple, seed 0\n" in run("--seeds", "0", "--only", "method")[1]
    assert run("--seeds", "0")[0] == 0
    assert starts(here) == ["simple 0"]


@on_linux
def test_killed_in_the_middle_then_run_again(here: Path, run: Run, stopped: subprocess.Popen[str]) -> None:
    before = (folder("method") / runs.RESULT).stat().st_mtime_ns
    child = runs.read_status(folder("simple"))
    assert child is not None
    assert child.pid is not None
    stopped.kill()
    stopped.communicate()
    kill_and_wait(child.pid)
    control(here)
    starts(here)
    assert run("--seeds", "0")[0] == 0
    assert starts(here) == ["simple 0"]
    assert (folder("method") / runs.RESULT).stat().st_mtime_ns == before


@on_linux
def test_a_run_left_behind_is_taken_over_not_doubled(
    here: Path, run: Run, stopped: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    child = runs.read_status(folder("simple"))
    assert child is not None
    assert child.pid is not None
    pid = child.pid
    stopped.kill()
    stopped.communicate()
    assert runs.is_alive(child)
    starts(here)
    with pytest.raises(UserError, match="simple seed 0 must not run already, but process"):
        run("--seeds", "0", "trainer.max_epochs=9")
    screen = Watched(["start   simple seed 0"], lambda: kill_and_wait(pid))
    monkeypatch.setattr(compare, "console", screen.console)
    assert run("--seeds", "0")[0] == 1
    assert "the process died" in screen.getvalue()
    assert starts(here) == []


@on_linux
def test_an_interruption_leaves_alone_what_the_study_has_not_started(
    here: Path, run: Run, gate: Gate, stopped: subprocess.Popen[str]
) -> None:
    """Such as a fit of the user's own in that folder."""
    stopped.kill()
    stopped.communicate()
    before = runs.read_status(folder("simple"))
    assert before is not None
    assert before.pid is not None
    second = driver(here, "--seeds", "0")
    assert second.stdout is not None
    assert any(line.startswith("start   simple seed 0") for line in second.stdout)
    second.send_signal(signal.SIGINT)
    out, _ = second.communicate()
    assert second.returncode == 130
    assert f"goes on: simple seed 0, process {before.pid}, which was not started here" in out.splitlines()
    assert runs.read_status(folder("simple")) == before
    assert runs.is_alive(before)
    ended = os.pidfd_open(before.pid)
    gate.open()
    select.select([ended], [], [])
    os.close(ended)
    starts(here)
    assert "2 finished, 0 to run" in run("--seeds", "0")[1]


def test_a_process_with_other_settings_that_came_meanwhile_is_not_judged(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fit of the user's own in the folder of a run that waits: the run cannot begin, and that fit's status stays."""
    theirs = runs.Status("running", runs.now(), None, os.getpid(), socket.gethostname(), None, "of other settings")

    class Meanwhile(Fake):
        def start(self, job: jobs.Job, threads: int | None) -> jobs.Spawned:
            if job.label == "method":
                runs.write_status(folder("simple"), theirs)
            return super().start(job, threads)

    control(here, simple="refuse")
    assert compare.main(["study.yaml", "--seeds", "0"], server=lambda: nullcontext(Meanwhile(here))) == 1
    assert "FAILED  simple seed 0 [2/2]" in capsys.readouterr().out
    assert runs.read_status(folder("simple")) == theirs


def test_a_closed_pipe_stops_the_study_in_one_sentence(here: Path, run: Run, gate: Gate) -> None:
    control(here, method="wait")
    process = driver(here, "--seeds", "0")
    assert process.stdout is not None
    assert any(line.startswith("start   method seed 0") for line in process.stdout)
    gate.arrival()
    process.stdout.close()
    gate.open()
    assert process.wait() == 2
    assert process.stderr is not None
    assert process.stderr.read() == (
        "embedlab: error: the output must be read to its end, but the pipe was closed; the same command resumes.\n"
    )
    process.stderr.close()
    starts(here)
    run("--seeds", "0")
    assert starts(here) == ["simple 0"]


def test_a_study_runs_once_at_a_time(here: Path, run: Run, stopped: subprocess.Popen[str]) -> None:
    with pytest.raises(UserError, match=rf"already running there \(process {stopped.pid} on "):
        run()
    assert run("--dry-run", "--seeds", "0")[1].splitlines()[-2].startswith("running ")


def test_on_a_terminal_it_draws(here: Path, gate: Gate) -> None:
    """The run is held until its bar has been drawn."""
    control(here, method="wait")
    arguments = ["fit", "--run_dir", str(folder("method")), "--label", "method", "--seed_everything", "0"]
    arguments += ["--study", "demo"]
    job = jobs.Job("method", 0, folder("method"), "abc", arguments, expected=1e6)
    job.folder.mkdir(parents=True)
    screen = Watched(["training 1/4", "0 of 1 ended, about "], gate.open)
    (outcome,) = launcher.run_all([job], 1, screen.console(terminal=True), Fake(here).start)
    assert outcome.error is None
    assert screen.came
    assert "done    method seed 0 [1/1]" in screen.getvalue()
