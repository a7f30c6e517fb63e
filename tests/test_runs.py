"""The run folder, and what makes two runs the same."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import embedlab
from embedlab import runs
from embedlab.errors import UserError
from embedlab.runs import identity


def test_status_goes_through_its_states_and_keeps_what_it_must(tmp_path: Path) -> None:
    assert runs.read_status(tmp_path) is None
    queued = runs.mark(tmp_path, "queued", request="abc")
    assert (queued.state, queued.request, queued.pid) == ("queued", "abc", None)
    running = runs.mark(tmp_path, "running")
    assert (running.request, running.pid, running.host) == ("abc", os.getpid(), socket.gethostname())
    failed = runs.mark(tmp_path, "failed", "no memory")
    assert (failed.started, failed.pid, failed.error) == (running.started, os.getpid(), "no memory")
    assert runs.read_status(tmp_path) == failed
    assert runs.mark(tmp_path, "queued").error is None
    assert runs.mark(tmp_path, "queued", pid=7).pid == 7


def test_result_round_trip_has_a_version_and_no_nan(tmp_path: Path) -> None:
    assert runs.read_result(tmp_path) is None
    runs.write_result(tmp_path, {"seed": 3, "metrics": {"test/stsb": {"spearman": float("nan"), "ok": [float("inf")]}}})
    result = runs.read_result(tmp_path)
    assert result == {
        "schema_version": 1,
        "seed": 3,
        "metrics": {"test/stsb": {"spearman": None, "ok": [None]}},
    }
    assert [own.name for own in tmp_path.iterdir()] == ["result.json"]


def test_a_writer_that_dies_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.write_result(tmp_path, {"seed": 1, "metrics": {}})

    def die(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(OSError, match="disk full"):
        runs.write_result(tmp_path, {"seed": 2})
    result = runs.read_result(tmp_path)
    assert result is not None
    assert result["seed"] == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"schema_version": 2}'])
def test_a_damaged_result_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / runs.RESULT).write_text(content)
    with pytest.raises(UserError, match=r"result\.json"):
        runs.read_result(tmp_path)


def test_a_damaged_status_is_named(tmp_path: Path) -> None:
    (tmp_path / runs.STATUS).write_text('{"state": "sleeping"}')
    with pytest.raises(UserError, match="'sleeping'"):
        runs.read_status(tmp_path)


def test_progress_is_only_for_show(tmp_path: Path) -> None:
    assert runs.read_progress(tmp_path) is None
    runs.write_progress(tmp_path, runs.Progress("training", 3, 10, 1.5))
    assert runs.read_progress(tmp_path) == runs.Progress("training", 3, 10, 1.5)
    (tmp_path / runs.PROGRESS).write_text("{")
    assert runs.read_progress(tmp_path) is None


def test_find_runs_sorts_by_number_and_leaves_out_what_was_superseded(tmp_path: Path) -> None:
    folders = [runs.run_folder(tmp_path, "demo", "freeze", seed) for seed in (10, 2)]
    for folder in folders:
        runs.mark(folder, "queued")
    old = runs.run_folder(tmp_path, "demo", "freeze", 3)
    runs.write_result(old, {})
    aside = runs.set_aside(old, "0123456789")
    assert aside.name == "seed-3.superseded-01234567"
    assert runs.find_runs(tmp_path) == [folders[1], folders[0]]
    assert runs.find_runs(folders[0]) == [folders[0]]
    assert runs.find_runs(aside) == [aside]
    assert runs.find_runs(tmp_path / "nothing") == []
    assert runs.identify(aside) == ("demo", "freeze", 3)
    assert runs.identify(tmp_path / "by-hand")[2] is None


def test_nothing_moved_aside_is_overwritten(tmp_path: Path) -> None:
    names = []
    for number in range(3):
        folder = tmp_path / "seed-0"
        runs.write_result(folder, {"number": number})
        names.append(runs.set_aside(folder, None).name)
    assert names == ["seed-0.superseded-unknown" + end for end in ("", "-2", "-3")]


def test_liveness_knows_reused_process_ids_and_other_machines(tmp_path: Path) -> None:
    status = runs.mark(tmp_path, "running")
    assert runs.is_alive(status)
    assert not runs.is_alive(replace(status, state="done"))
    assert not runs.is_alive(replace(status, host="elsewhere"))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    if Path("/proc/self/stat").exists():
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert not runs.is_alive(replace(status, pid=ended.pid))  # ended, but its parent has not asked yet
    ended.wait()
    assert not runs.is_alive(replace(status, pid=ended.pid))
    if Path("/proc/self/stat").exists():
        # This process is younger than a run of last year, so it cannot be the one.
        assert not runs.is_alive(replace(status, started="2020-01-01T00:00:00+00:00"))


# Identity ---------------------------------------------------------------------------------------------------


def request(folder: Path, config: str = "a: 1", overrides: dict[str, object] | None = None, seed: int = 0) -> str:
    path = folder / "config.yaml"
    path.write_text(config)
    return identity.request_hash([path], overrides or {}, seed)


def test_comments_and_order_of_keys_do_not_count(tmp_path: Path) -> None:
    assert request(tmp_path, "a: 1\nb: 2") == request(tmp_path, "# why\nb: 2\na: 1")


def test_everything_that_defines_a_run_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        request(tmp_path),
        request(tmp_path, "a: 2"),
        request(tmp_path, overrides={"trainer.max_epochs": 1}),
        request(tmp_path, overrides={"trainer.max_epochs": 2}),
        request(tmp_path, seed=1),
    ]
    monkeypatch.setattr(embedlab, "__version__", "9.9")
    found.append(request(tmp_path))
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("config", "overrides"),
    [
        ("data: {train: {path: FILE}}", {}),
        ("data: {test: {mine: {path: FILE}}}", {}),
        ("model: {init_args: {pretraining: {source: {path: FILE}}}}", {}),
        ("a: 1", {"data.train.path": "FILE"}),
        ("a: 1", {"data.test": {"mine": {"path": "FILE"}}}),
        ("a: 1", {"model.pretraining.source.path": "FILE"}),
    ],
)
def test_a_changed_data_file_is_another_run(tmp_path: Path, config: str, overrides: dict[str, object]) -> None:
    data = tmp_path / "train.tsv"
    overrides = json.loads(json.dumps(overrides).replace("FILE", str(data)))
    found = []
    for content in ("one", "other", "one"):
        data.write_text(content)
        found.append(request(tmp_path, config.replace("FILE", str(data)), overrides))
    assert found[0] == found[2] != found[1]


def test_a_path_elsewhere_is_no_data(tmp_path: Path) -> None:
    other = tmp_path / "log.txt"
    found = []
    for content in ("one", "two"):
        other.write_text(content)
        found.append(request(tmp_path, f"trainer: {{path: {other}}}"))
    assert found[0] == found[1]


def test_a_decoder_in_a_folder_counts_by_its_files(tmp_path: Path) -> None:
    decoder = tmp_path / "decoder"
    decoder.mkdir()
    (decoder / "model.safetensors").write_text("one")
    (tmp_path / "c.yaml").write_text(f"model: {{init_args: {{backbone: {{name: {decoder}}}}}}}")
    first = identity.request_hash([tmp_path / "c.yaml"], {}, 0)
    assert identity.request_hash([tmp_path / "c.yaml"], {}, 0) == first
    (decoder / "model.safetensors").write_text("two!")
    assert identity.request_hash([tmp_path / "c.yaml"], {}, 0) != first


def test_how_a_run_is_shown_does_not_count(tmp_path: Path) -> None:
    found = set()
    for number, own in enumerate(("", ", logger: true", ", logger: [{class_path: x}], log_every_n_steps: 3")):
        config = tmp_path / f"{number}.yaml"
        config.write_text(f"trainer: {{max_epochs: 1{own}}}")
        found.add(identity.request_hash([config], {"trainer.logger.0.init_args.offline": number}, 0))
    assert len(found) == 1
    assert identity.request_hash([config], {"trainer.max_epochs": 2}, 0) not in found


def test_code_of_ones_own_counts_but_not_its_comments(tmp_path: Path) -> None:
    code, config = tmp_path / "mine.py", tmp_path / "config.yaml"
    config.write_text("a: 1")
    found = []
    for content in ("x = 1", "# why\nx  =  1", "x = 2"):
        code.write_text(content)
        found.append(identity.request_hash([config], {}, 0, [code]))
    assert found[0] == found[1] != found[2]
