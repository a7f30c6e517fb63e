"""The run folder, and what makes two runs the same."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from embedlab import runs
from embedlab.errors import UserError
from embedlab.runs.claim import MADE, claim, parts_of


def test_status_goes_through_its_states_and_keeps_what_it_must(tmp_path: Path) -> None:
    assert runs.read_status(tmp_path) is None
    queued = runs.mark(tmp_path, "queued", identity="abc")
    assert (queued.state, queued.identity, queued.pid) == ("queued", "abc", None)
    running = runs.mark(tmp_path, "running")
    assert (running.identity, running.pid, running.host) == ("abc", os.getpid(), socket.gethostname())
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
    for damage in ("{", "[]", '{"done": 1}', '{"phase": 3}', '{"phase": "testing", "done": "x", "total": 2}'):
        (tmp_path / runs.PROGRESS).write_text(damage)
        assert runs.read_progress(tmp_path) is None, damage
    (tmp_path / runs.PROGRESS).unlink()
    (tmp_path / runs.PROGRESS).mkdir()
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


def test_a_run_neither_holds_other_runs_nor_lies_in_one(tmp_path: Path) -> None:
    """The report takes a run folder for one run, so that it would show none of those in it."""
    own = runs.run_folder(tmp_path / "runs", "demo", "freeze", 2)
    runs.mark(own, "queued")
    (own / runs.IDENTITY).touch()
    for folder in (tmp_path / "runs", own.parent, tmp_path):
        with pytest.raises(UserError, match=r"^`run_dir` must be .*seed-2 lies in it; name another one\.$"):
            runs.check_run_folder(folder, "`run_dir`")
    with pytest.raises(UserError, match=r"^`run_dir` must be .* lies in the run .*seed-2; name another one\.$"):
        runs.check_run_folder(own / "deep" / "er", "`run_dir`")
    for folder in (own, own.with_name("seed-3"), tmp_path / "nothing"):
        runs.check_run_folder(folder, "`run_dir`")


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


def test_what_an_earlier_version_wrote_has_no_identity(tmp_path: Path) -> None:
    (tmp_path / runs.STATUS).write_text('{"state": "failed", "request": "abc"}')
    status = runs.read_status(tmp_path)
    assert status is not None
    assert status.identity is None


def test_a_folder_in_which_nothing_was_learned_is_taken_over(tmp_path: Path) -> None:
    """Its best epoch, if any, is no state that a run goes on from."""
    claim(tmp_path, "a", {}, {"torch": "1"}).release()
    (tmp_path / runs.BEST).parent.mkdir()
    (tmp_path / runs.BEST).touch()
    claim(tmp_path, "b", {}, {"torch": "2"}).release()
    assert parts_of(tmp_path) == [{"code": {}, "versions": {"torch": "2"}}]
    (tmp_path / runs.STAGES / "one").mkdir(parents=True)
    (tmp_path / runs.STAGES / "one" / "last.ckpt").touch()
    with pytest.raises(UserError, match="an unfinished run with other settings, data or code"):
        claim(tmp_path, "a", {}, {})
    (tmp_path / runs.IDENTITY).unlink()  # as after a kill while it was written, if it were not written at once
    claim(tmp_path, "a", {}, {}).release()


def test_a_folder_remembers_each_part_of_a_run_once(tmp_path: Path) -> None:
    """An earlier version kept no such file; then this part is the first that is known."""
    (tmp_path / runs.IDENTITY).write_text("a")
    (tmp_path / runs.LAST).parent.mkdir()
    (tmp_path / runs.LAST).touch()
    for torch in ("1", "1", "2", "1"):
        claim(tmp_path, "a", {"packing": "x y"}, {"torch": torch}).release()
    assert parts_of(tmp_path) == [{"code": {"packing": "x y"}, "versions": {"torch": own}} for own in ("1", "2")]
    (tmp_path / MADE).write_text('{"parts": {"1": {"code": 3}}}')
    with pytest.raises(UserError, match="must hold a mapping as `parts.1.code`, got int 3"):
        claim(tmp_path, "a", {}, {})


def test_a_file_of_the_longest_name_there_can_be_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / f"{250 * 'n'}.json"
    for number in (1, 2):
        runs.write_json_atomic(path, {"n": number})
        assert runs.read_json(path) == {"n": number}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_must_not_be_read_has_its_permissions_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / runs.RESULT).write_text("{}")

    def refuse(path: Path, encoding: str) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(UserError, match=r"result.json must be a file .* \(Permission denied\); change its permissions"):
        runs.read_json(tmp_path / runs.RESULT)
