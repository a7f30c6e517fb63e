"""`embedlab features`: what is kept, whether it is whole, and what goes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from embedlab import cli, runs
from embedlab.analysis.cache import Cache, caches, chosen
from embedlab.backbone.feature_cache import FeatureCache
from embedlab.errors import UserError
from tests.conftest import TEXTS

DECODER = "0123456789abcdef"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FeatureCache]:
    """Return a function that keeps features of some texts under an identity, in a cache of the test's own."""
    monkeypatch.setenv("EMBEDLAB_CACHE", str(tmp_path))

    def keep(texts: list[str], **identity: object) -> FeatureCache:
        said = {"decoder": DECODER, "pooling": "embedlab.pooling.last 77", "states": [0, 1, "final"], **identity}
        cache = FeatureCache(said | {"computed_in": "torch.bfloat16"}, (3, 2), torch.float32, tmp_path / "features")
        cache.add(texts, lambda own: [torch.arange(6.0 * len(own)).view(-1, 3, 2)])
        return cache

    return keep


def typed(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert cli.main(["features", *words]) == status
    out, err = capsys.readouterr()
    return out if status < 2 else err


def test_it_lists_what_is_there(kept: Callable[..., FeatureCache], capsys: pytest.CaptureFixture[str]) -> None:
    one = kept(TEXTS, **{"begin, not pooled": [1]})
    kept(TEXTS[:3], states="output of blocks 1 to 3")
    os.utime(one.folder / "identity.json", (0, 2e9))
    out = typed(capsys, "ls")
    (line,) = [own for own in out.splitlines() if own.startswith(one.folder.name[:8])]
    for cell in ("01234567", "0 to 1, final", "last", "1 (not pooled)", "float32 of bfloat16", "8", "2033-05-1"):
        assert f" {cell}" in line
    assert "2 caches" in out
    assert "11 texts" in out
    assert "blocks 1 to 3" in out
    (line,) = typed(capsys, "ls", one.folder.name[:5]).splitlines()[-1:]
    assert "1 cache " in line


def test_tokens_are_no_texts_and_a_decoder_has_a_name(
    kept: Callable[..., FeatureCache], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    identity = {"decoder": DECODER, "tokens of the last copy in": "{}", "states": [0], "begin": [1, 2]}
    root = tmp_path / "features"
    cache = FeatureCache(identity, (1, 2), torch.float32, root, ragged=True, decoder="org/small")
    cache.add(["a", "bc"], lambda texts: [[torch.zeros(5, 1, 2) for _ in texts]])
    kept(TEXTS)  # a cache without a name
    (line,) = [own for own in typed(capsys, "ls").splitlines() if own.startswith(cache.folder.name[:8])]
    for cell in ("org/small (01234567)", "none: every token", "1 2", " 2 ", "10 tokens"):
        assert cell in line
    out = typed(capsys, "ls")
    assert "10 texts" in out
    assert " 01234567 " in out


def test_the_hit_rate_is_that_of_all_processes(
    kept: Callable[..., FeatureCache], capsys: pytest.CaptureFixture[str]
) -> None:
    kept(TEXTS[:6])  # asks for 6, finds none
    cache = kept(TEXTS[:8])  # asks for 8, finds 6
    cache.add(TEXTS[:8], lambda own: [])  # what one process asks for again is not asked for anew
    out = typed(capsys, "ls")
    assert "42.9 %" in out.splitlines()[1]
    assert out.splitlines()[-1].endswith("of 14 texts asked for 6 were found (42.9 %)")
    (cache.folder / "uses.txt").write_text("6 0\nno line\n7\n")
    assert "of 6 texts asked for 0 were found" in typed(capsys, "ls")
    (cache.folder / "uses.txt").unlink()
    assert typed(capsys, "ls").splitlines()[1].split()[-5] == "-"


def test_a_changed_identity_is_told(kept: Callable[..., FeatureCache], capsys: pytest.CaptureFixture[str]) -> None:
    path = kept(TEXTS).folder / "identity.json"
    for content in (path.read_bytes()[:-1] + b"x", path.read_bytes().replace(b"0123", b"0124")):
        path.write_bytes(content)
        assert f"damaged: {path}: the folder is named by the hash of another one" in typed(capsys, "verify", status=1)
        assert typed(capsys, "verify").startswith("1 of 1 files")


def test_finding_features_marks_them_as_used(kept: Callable[..., FeatureCache]) -> None:
    folder = kept(TEXTS).folder
    for path in folder.iterdir():
        os.utime(path, (5.0, 5.0))
    assert Cache(folder).last_used == 5.0
    kept(TEXTS)
    assert Cache(folder).last_used > 5.0


def test_runs_tell_how_many_they_found(
    kept: Callable[..., FeatureCache], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(TEXTS)
    for seed, features in enumerate(({"texts": 30, "texts_found": 10}, {"texts": 10, "texts_found": 10}, None)):
        folder = runs.run_folder(tmp_path / "runs", "s", "x", seed)
        folder.mkdir(parents=True)
        backbone = {"name": "small", "sha256": DECODER}
        result = {"metrics": {}, "features": features, "seconds": {"features_found": 2.0}, "backbone": backbone}
        runs.write_result(folder, result)
    out = typed(capsys, "ls", "--runs", str(tmp_path / "runs"))
    assert "20 of 40 texts (50.0 %) of 2 of 3 finished runs" in out
    assert "6.0 s" in out
    assert "small (01234567)" in out


def test_damage_is_found_and_set_aside(
    kept: Callable[..., FeatureCache], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken, cut = kept(TEXTS), kept(TEXTS, n=1), kept(TEXTS, n=2)
    assert "3 of 3 files of 3 caches are whole" in typed(capsys, "verify")
    (shard,) = Cache(broken.folder).shards
    content = bytearray(shard.read_bytes())
    begin = 8 + int.from_bytes(content[:8], "little")
    place = json.loads(content[8:begin])["features"]["data_offsets"][0]
    content[begin + place] ^= 255
    shard.write_bytes(content)
    (short,) = Cache(cut.folder).shards
    short.write_bytes(short.read_bytes()[:-3])
    out = typed(capsys, "verify", status=1)
    assert "1 of 8 rows are not what was written" in out
    assert "1 of 3 files of 3 caches are whole" in out
    assert [path.suffix for own in (broken, cut) for path in Cache(own.folder).remains] == [".damaged"] * 2
    assert typed(capsys, "verify").startswith("1 of 1 files")
    assert "2 of" not in typed(capsys, "rm", "--damaged")
    assert not Cache(broken.folder).remains
    assert Cache(whole.folder).shards

    def barred(path: Path, row_bytes: int) -> None:
        raise FileNotFoundError(path)  # as safetensors says where the file may not be read

    monkeypatch.setattr("embedlab.backbone.shards.open_shard", barred)
    out = typed(capsys, "verify", status=1)
    assert "it cannot be read; let this user read it" in out
    assert "0 of 1 files" in out
    assert Cache(whole.folder).shards, "what may be whole is not set aside"


def test_rm_deletes_what_is_named_and_nothing_else(
    kept: Callable[..., FeatureCache], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = kept(TEXTS), kept(TEXTS, n=1)
    (other.folder / "mine.txt").write_text("kept")
    size = Cache(one.folder).size
    assert "would delete" in typed(capsys, "rm", "--all", "--dry-run")
    assert Cache(one.folder).size == size
    assert one.folder.name in typed(capsys, "rm", one.folder.name)
    assert not one.folder.exists()
    assert Cache(other.folder).shards
    typed(capsys, "rm", "--all")
    assert [path.name for path in other.folder.iterdir()] == ["mine.txt"]


def test_rm_by_age(kept: Callable[..., FeatureCache], capsys: pytest.CaptureFixture[str]) -> None:
    old, new = kept(TEXTS), kept(TEXTS, n=1)
    for path in old.folder.iterdir():
        os.utime(path, (5.0, 5.0))
    typed(capsys, "rm", "--older-than", "30")
    assert [own.folder for own in caches(new.folder.parent)] == [new.folder]


def test_what_a_process_computes_into_stays(
    kept: Callable[..., FeatureCache], capsys: pytest.CaptureFixture[str]
) -> None:
    cache = kept(TEXTS)
    with FileLock(cache.folder / ".lock"):
        assert "kept" in typed(capsys, "rm", "--all", status=1)
    assert Cache(cache.folder).shards


def test_stages_kept_for_other_runs_are_told_and_deleted_unless_one_trains(
    kept: Callable[..., FeatureCache], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    kept(TEXTS)
    for number, name in enumerate(("old", "new", "training")):
        folder = tmp_path / "stages" / name
        folder.mkdir(parents=True)
        (folder / "weights.ckpt").write_bytes(bytes(1000))
        os.utime(folder / "weights.ckpt", (0, 2e9 * number))
    assert "kept for other runs: 3, 3.0 kB" in typed(capsys, "ls")
    (tmp_path / "stages" / "begun").mkdir()  # by a run that is training it, or was killed
    assert "stage old" not in typed(capsys, "rm", "--all", "--damaged")
    assert "would delete: stage old, 1.0 kB" in typed(capsys, "rm", "--older-than", "1", "--dry-run")
    assert "deleted: stage old, 1.0 kB" in typed(capsys, "rm", "--older-than", "1")
    with FileLock(tmp_path / "stages" / "training" / ".lock"):
        assert "kept: stage training, as a run trains it" in typed(capsys, "rm", "--all", status=1)
    assert sorted(own.name for own in (tmp_path / "stages").iterdir()) == ["begun", "training"]


def test_remains_and_a_lost_identity_are_told(
    kept: Callable[..., FeatureCache], capsys: pytest.CaptureFixture[str]
) -> None:
    cache = kept(TEXTS)
    (cache.folder / "identity.json").write_text("[")
    (cache.folder / "x.unfinished").write_bytes(b"12")
    (cache.folder / "y.safetensors").write_bytes(b"12")
    out = typed(capsys, "ls")
    assert "1 files cannot be read: verify; 1 remains: rm --damaged" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "`features` must be followed by one of ls, verify, rm, got none"),
        (["lss"], "did you mean ls"),
        (["rm"], "`rm` must be told what to delete"),
        (["rm", "--all", "ab"], "got several"),
        (["rm", "--older-than", "soon"], "`--older-than` must be a number, got 'soon'"),
        (["rm", "--older-than", "nan"], "`--older-than` must be a number of days"),
        (
            ["rm", "--all", "--yes"],
            "`--yes` must be an option of embedlab features rm; leave it out, as nothing is asked",
        ),
        (
            ["verify", "--runs", "x"],
            "`--runs` must be an option of embedlab features verify; `embedlab features ls` has it",
        ),
        (["ls", "--damaged"], "`--damaged` must be an option of embedlab features ls; `embedlab features rm` has it"),
        (["ls", "zz"], "`HASH` must be the beginning of the name of one cache, got 'zz'"),
        (["ls", "--runs", "nowhere"], "`--runs` must be a folder"),
    ],
)
def test_one_sentence_for_what_is_wrong(
    words: list[str], says: str, kept: Callable[..., FeatureCache], capsys: pytest.CaptureFixture[str]
) -> None:
    kept(TEXTS)
    err = typed(capsys, *words, status=2)
    assert says in err
    assert err.count("\n") == 1


def test_a_name_that_fits_several(tmp_path: Path) -> None:
    for name in ("ab1", "ab2"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="2 begin so; write more of it"):
        chosen(caches(tmp_path), ["ab"])
    assert [own.name for own in chosen(caches(tmp_path), ["ab2"])] == ["ab2"]


def test_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EMBEDLAB_CACHE", str(tmp_path / "none"))
    assert typed(capsys, "ls").startswith("0 caches")
    assert "0 bytes freed" in typed(capsys, "rm", "--all")
