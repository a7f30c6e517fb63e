"""The feature cache: shared, locked, mapped, and hard to lose."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load, save
from torch import Tensor

from embedlab.analysis.cache import Cache
from embedlab.backbone.feature_cache import Cost, FeatureCache
from embedlab.backbone.shards import DamagedShard, open_shard
from tests import processes

SHAPE = (3, 8)
TEXTS = ["d", "ef", "abc", "a man", "a woman", "two dogs run"]
NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
TOO_MANY = OSError(errno.EMFILE, "Too many open files")


def features_of(text: str) -> Tensor:
    """Return numbers that no other text has, (3, 8)."""
    seed = int.from_bytes(text.encode("utf-8", "surrogatepass")[:7], "little") + len(text)
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def expected(texts: Sequence[str], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.stack([features_of(text) for text in texts]).to(dtype)


def tokens(texts: Sequence[str], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return as many rows for each text as it has letters, (T_i, 3, 8)."""
    return [torch.stack([features_of(f"{text}{n}") for n in range(max(1, len(text)))]).to(dtype) for text in texts]


class Compute:
    """Counts what it is asked for."""

    def __init__(self, ragged: bool = False) -> None:
        self.asked: list[str] = []
        self.ragged = ragged

    def __call__(self, texts: Sequence[str]) -> list[Tensor] | list[list[Tensor]]:
        self.asked += texts
        return [tokens(texts)] if self.ragged else [expected(texts)]


def open_cache(root: Path, dtype: torch.dtype = torch.float32, ragged: bool = False) -> FeatureCache:
    return FeatureCache({"a": 1}, SHAPE, dtype, root, ragged, "a decoder")


def shards(root: Path) -> list[Path]:
    return sorted(root.rglob("*.safetensors"))


# What it gives ----------------------------------------------------------------------------------------------


def test_each_text_is_computed_once_for_all_who_share_it(tmp_path: Path) -> None:
    cache, compute = open_cache(tmp_path), Compute()
    cache.add(["abc", "d", "abc"], compute)
    cache.add(["d", "ef"], compute)
    assert compute.asked == ["d", "abc", "ef"], "shortest first, each once"
    again = open_cache(tmp_path)
    again.add(["abc", "ef"], compute)
    assert len(compute.asked) == 3
    other = FeatureCache({"a": 2}, SHAPE, torch.float32, tmp_path)
    assert other.missing(["abc", "abc"]) == ["abc"]
    again.add(["new"], compute)
    assert cache.missing(["new"]) == [], "another's shard is seen"
    with pytest.raises(KeyError):
        cache.get(["never added"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_rows_come_back_bit_for_bit_from_any_shard(tmp_path: Path, dtype: torch.dtype) -> None:
    open_cache(tmp_path, dtype).add(TEXTS, Compute(), block=2)
    assert len(shards(tmp_path)) == 3
    cache = open_cache(tmp_path, dtype)
    assert cache.missing(TEXTS) == []
    wanted = [TEXTS[i] for i in (5, 0, 3, 3, 1, 4, 2, 0)]
    features = cache.get(wanted)
    assert features.dtype == dtype
    assert torch.equal(features, expected(wanted, dtype))
    features.zero_()
    assert torch.equal(cache.get(wanted), expected(wanted, dtype)), "what is handed out is the caller's own"
    assert cache.get([]).shape == (0, *SHAPE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tokens_of_texts_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    open_cache(tmp_path, dtype, ragged=True).add(TEXTS, Compute(ragged=True), block=4)
    assert len(shards(tmp_path)) == 2
    cache, compute = open_cache(tmp_path, dtype, ragged=True), Compute(ragged=True)
    cache.add(TEXTS, compute)
    assert compute.asked == []
    wanted = [TEXTS[i] for i in (5, 0, 3, 3, 1, 4, 2, 0)]
    found = cache.get_each(wanted)
    assert [len(own) for own in found] == [len(text) for text in wanted]
    assert all(map(torch.equal, found, tokens(wanted, dtype)))
    assert cache.folder != open_cache(tmp_path, dtype).folder, "another cache than that of one row a text"


def test_shards_of_tokens_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedlab.backbone.feature_cache._SHARD_BYTES", 12 * math.prod(SHAPE) * 4)
    texts = [f"{n:012}" for n in range(7)]  # taken for five tokens each
    open_cache(tmp_path, ragged=True).add(texts, Compute(ragged=True))
    assert len(shards(tmp_path)) == 4, "two a shard"


def test_tokens_are_held_in_memory_where_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise NO_SPACE

    cache = open_cache(tmp_path, ragged=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        cache.add(TEXTS, Compute(ragged=True))
    assert all(map(torch.equal, cache.get_each(TEXTS), tokens(TEXTS)))


def test_any_text_is_a_text(tmp_path: Path) -> None:
    texts = ["", "\0", "a\0", "a", "\ud800", "\udfff x", "é", "e\u0301", "\U0001f600", "x" * 1_000_000, "../../etc"]
    cache, compute = open_cache(tmp_path), Compute()
    cache.add(texts, compute)
    assert sorted(compute.asked) == sorted(texts)
    again = open_cache(tmp_path)
    assert again.missing(texts) == []
    assert torch.equal(again.get(texts), expected(texts))


def test_the_folder_is_not_read_while_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_cache(tmp_path).add(TEXTS, Compute(), block=2)
    cache = open_cache(tmp_path)
    cache.add(TEXTS, Compute())

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the disk is left alone")

    for name in ("listdir", "scandir", "stat", "open"):
        monkeypatch.setattr(os, name, forbidden)
    monkeypatch.setattr(Path, "open", forbidden)
    assert cache.missing(TEXTS) == []
    assert torch.equal(cache.get(TEXTS[:3]), expected(TEXTS[:3]))
    assert cache.size > 0


def test_size_is_that_of_the_shards(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    assert cache.size == 0
    assert list(tmp_path.iterdir()) == [], "nothing is made before there is something to keep"
    cache.add(TEXTS, Compute(), block=4)
    size = sum(path.stat().st_size for path in shards(tmp_path))
    assert cache.size == size == open_cache(tmp_path).size


def test_a_shard_is_bounded_in_bytes(tmp_path: Path) -> None:
    asked = []

    class EnoughError(Exception):
        pass

    def compute(texts: Sequence[str]) -> list[Tensor]:
        asked.append(len(texts))
        raise EnoughError

    big = FeatureCache({}, (30, 2**18), torch.float32, tmp_path)  # 30 MiB a text
    with pytest.raises(EnoughError):
        big.add(TEXTS, compute)
    assert asked == [2]


def _anonymous() -> int:
    """Return the bytes of this process that are in no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def _read_all(root: Path) -> tuple[int, int]:
    """Write many features and read all of them; return their bytes, and by how many this process has grown."""
    texts = [str(i) for i in range(600)]
    cache = FeatureCache({}, (30, 2048), torch.float32, root)
    cache.add(texts, lambda part: [torch.zeros(len(part), 30, 2048)])
    cache = FeatureCache({}, (30, 2048), torch.float32, root)
    before = _anonymous()
    cache.add(texts, Compute())
    for start in range(0, 600, 5):
        cache.get(texts[start : start + 5])
    return cache.size, _anonymous() - before


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's own status")
def test_nothing_of_the_set_is_held_in_memory(tmp_path: Path) -> None:
    size, grown = processes.call(tmp_path, _read_all, tmp_path)
    assert size > 140 * 2**20
    assert grown < 16 * 2**20


# Several processes ------------------------------------------------------------------------------------------


class _Tell(logging.Handler):
    """Says what is logged."""

    def __init__(self, parent: Connection) -> None:
        super().__init__()
        self.parent = parent

    def emit(self, record: logging.LogRecord) -> None:
        self.parent.send("waits" if "waiting" in record.getMessage() else record.getMessage())


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _child(parent: Connection, root: Path, role: str, block: int) -> None:
    """Add the texts as a role would; say how many were computed, and whether all came out right."""
    logger, compute = logging.getLogger("embedlab"), Compute()
    logger.addHandler(_Tell(parent))
    logger.setLevel(logging.INFO)

    def computed(texts: Sequence[str]) -> list[Tensor]:
        if compute.asked and role == "dies while computing":
            _die()
        if compute.asked and role == "waits while computing":
            parent.send("computes")
            parent.recv()
        return compute(texts)

    if role == "dies before the rename":
        real = os.replace
        os.replace = lambda old, new: _die() if compute.asked[block:] else real(old, new)
    if role == "dies while writing":
        real_sync = os.fsync

        def cut(file: int) -> None:
            if compute.asked[block:]:
                os.ftruncate(file, 100)
                _die()
            real_sync(file)

        os.fsync = cut
    cache = open_cache(root)
    cache.add(TEXTS, computed, block, lambda done, total: _die() if role == "dies between two shards" else None)
    parent.send((len(compute.asked), torch.equal(cache.get(TEXTS), expected(TEXTS))))


def test_of_two_processes_one_computes_and_the_other_waits(tmp_path: Path) -> None:
    with processes.talk(_child, tmp_path, "waits while computing", 4) as (_, first):
        assert first.recv() == "computes"  # its second shard
        reader = open_cache(tmp_path)  # reading goes on meanwhile
        ready = sorted(TEXTS, key=len)[:4]
        assert reader.missing(ready) == []
        assert torch.equal(reader.get(ready), expected(ready))
        with processes.talk(_child, tmp_path, "waits", 4) as (_, second):
            assert second.recv() == "waits"
            first.send("go on")
            assert first.recv() == (6, True)
            assert second.recv() == (0, True)


@pytest.mark.parametrize(
    "point", ["dies while computing", "dies while writing", "dies before the rename", "dies between two shards"]
)
def test_a_killed_process_loses_only_the_shard_at_hand(tmp_path: Path, point: str) -> None:
    with processes.talk(_child, tmp_path, point, 4) as (child, _):
        child.join()
        assert child.exitcode == -signal.SIGKILL
    remains = list(tmp_path.rglob("*.unfinished"))
    assert bool(remains) == (point in ("dies while writing", "dies before the rename"))
    cache, compute = open_cache(tmp_path), Compute()
    cache.add(TEXTS, compute)
    assert compute.asked == sorted(TEXTS, key=len)[4:], "the first shard is kept, the second computed again"
    assert torch.equal(cache.get(TEXTS), expected(TEXTS))
    assert not list(tmp_path.rglob("*.unfinished"))
    assert not list(tmp_path.rglob("*.damaged"))


@pytest.mark.parametrize("shared", [True, False])
def test_threads_compute_each_text_once(tmp_path: Path, shared: bool) -> None:
    caches = [open_cache(tmp_path)] * 4 if shared else [open_cache(tmp_path) for _ in range(4)]
    compute, ready = Compute(), threading.Barrier(4)
    right = []

    def work(cache: FeatureCache) -> None:
        ready.wait()
        cache.add(TEXTS, compute, block=1)
        right.append(torch.equal(cache.get(TEXTS), expected(TEXTS)))

    threads = [threading.Thread(target=work, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 4
    assert sorted(compute.asked) == sorted(TEXTS)


def test_a_failing_computation_frees_the_lock_and_keeps_what_was_done(tmp_path: Path) -> None:
    def compute(texts: Sequence[str]) -> list[Tensor]:
        if "d" not in texts:
            raise MemoryError
        return [expected(texts)]

    cache = open_cache(tmp_path)
    with pytest.raises(MemoryError):
        cache.add(TEXTS, compute, block=2)
    (lock,) = tmp_path.rglob(".lock")
    with FileLock(lock, timeout=0):
        assert len(cache.missing(TEXTS)) == 4


# Damage, and what is none -----------------------------------------------------------------------------------


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def place_of(name: str, path: Path) -> int:
    """Return where a tensor begins in a file of safetensors."""
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    return begin + int(json.loads(content[8:begin])[name]["data_offsets"][0])


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-4]),
    "cut in its header": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "no JSON": lambda path: flip(path, 8),
    "a huge header": lambda path: flip(path, 6),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "another file": lambda path: path.write_text("<html>502 Bad Gateway</html>" * 99),
    "a wrong row": lambda path: flip(path, path.stat().st_size // 2),
    "a wrong key": lambda path: flip(path, place_of("keys", path)),
    "a wrong checksum": lambda path: flip(path, place_of("checksums", path)),
    "another decoder": lambda path: path.write_bytes(path.read_bytes().replace(b'"decoder":"a', b'"decoder":"b')),
    "no seconds": lambda path: path.write_bytes(path.read_bytes().replace(b'"seconds":"', b'"seconds":"-')),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("ragged", [False, True])
def test_a_damaged_shard_is_set_aside_and_only_its_rows_are_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str, ragged: bool
) -> None:
    writer = open_cache(tmp_path, ragged=ragged)
    writer.add(TEXTS[:3], Compute(ragged))
    (bad,) = shards(tmp_path)
    writer.add(TEXTS[3:], Compute(ragged))
    DAMAGES[damage](bad)
    cache, compute = open_cache(tmp_path, ragged=ragged), Compute(ragged)
    cache.add(TEXTS, compute)
    assert set(compute.asked) <= set(TEXTS[:3])
    assert compute.asked
    assert "damaged features are set aside" in caplog.text
    assert bad.with_suffix(".damaged").exists()
    assert not bad.exists()
    assert all(map(torch.equal, cache.get_each(TEXTS), tokens(TEXTS) if ragged else expected(TEXTS)[:, None]))
    again = open_cache(tmp_path, ragged=ragged)
    assert again.missing(compute.asked) == []


@pytest.mark.parametrize("ragged", [False, True])
def test_a_changed_byte_anywhere_is_found(tmp_path: Path, ragged: bool) -> None:
    cache = FeatureCache({"a": 1}, (1, 2), torch.float32, tmp_path, ragged)
    cache.add(["d", "ef"], lambda texts: [[torch.zeros(3, 1, 2)] * 2 if ragged else torch.zeros(2, 1, 2)])
    (path,) = shards(tmp_path)
    content = path.read_bytes()
    for place in range(len(content)):
        for mask in (1, 28):  # 28 makes I8 of U8
            path.write_bytes(content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :])
            with suppress(DamagedShard):  # as a process that would use it
                shard = open_shard(path, cache.row_bytes)
                assert not all(map(shard.is_intact, range(2))), place
            assert [fault is not None for _, fault in Cache(path.parent).verify()] == [True], place
            path.with_suffix(".damaged").unlink()


def test_shards_of_before_there_was_a_checksum_of_their_index_are_read(tmp_path: Path) -> None:
    open_cache(tmp_path).add(TEXTS, Compute())
    (shard,) = shards(tmp_path)
    shard.write_bytes(save(load(shard.read_bytes()), {"seconds": "2.0"}))
    cache = open_cache(tmp_path)
    assert cache.missing(TEXTS) == []
    assert torch.equal(cache.get(TEXTS), expected(TEXTS))
    assert [fault for _, fault in Cache(shard.parent).verify()] == [None]


def test_a_decoder_may_be_called_anything(tmp_path: Path) -> None:
    for number, name in enumerate(('"index":"00000000"', "ein Zögern\n", "a path \udcff")):
        cache = FeatureCache({"a": number}, SHAPE, torch.float32, tmp_path, decoder=name)
        cache.add(TEXTS, Compute())
        assert [fault for _, fault in Cache(cache.folder).verify()] == [None]


def test_a_passing_error_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_cache(tmp_path).add(TEXTS, Compute(), block=4)
    kept = shards(tmp_path)
    with monkeypatch.context() as patch:
        real = Path.open

        def fail(path: Path, *args: str) -> object:
            if path == kept[1]:
                raise TOO_MANY
            return real(path, *args)

        patch.setattr(Path, "open", fail)
        with pytest.raises(OSError, match="Too many open files"):
            open_cache(tmp_path)
    assert shards(tmp_path) == kept
    compute = Compute()
    open_cache(tmp_path).add(TEXTS, compute)
    assert compute.asked == []


def test_many_shards_keep_no_file_open(tmp_path: Path) -> None:
    open_cache(tmp_path).add(TEXTS, Compute(), block=1)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    cache = open_cache(tmp_path)
    cache.add(TEXTS, Compute())
    after = os.open(os.devnull, os.O_RDONLY)
    os.close(after)
    assert after == lowest


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_full_disk_costs_a_warning_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    def full(*_: object) -> None:
        raise NO_SPACE

    cache, compute = open_cache(tmp_path), Compute()
    with monkeypatch.context() as patch:
        patch.setattr(os, name, full)
        cache.add(TEXTS[:4], compute, block=2)
        assert caplog.text.count("holds them in memory") == 1
        assert torch.equal(cache.get(TEXTS[:4]), expected(TEXTS[:4]))
        assert cache.cost(TEXTS[:4]).texts == 4
        assert cache.size == 0
        assert list(tmp_path.rglob("*.unfinished")) == shards(tmp_path) == []
    cache.add(TEXTS, compute)
    assert compute.asked == sorted(TEXTS, key=len), "what is in memory is not computed again"
    assert len(shards(tmp_path)) == 1, "once there is room, the disk is used"


def test_a_folder_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    cache = open_cache(tmp_path / "cache")
    cache.add(TEXTS, Compute())
    assert torch.equal(cache.get(TEXTS), expected(TEXTS))
    assert "holds them in memory" in caplog.text


# What they cost ---------------------------------------------------------------------------------------------


def test_features_that_are_found_cost_what_they_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("embedlab.backbone.feature_cache.time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def compute(texts: Sequence[str]) -> list[Tensor]:
        clock[0] += 2.0 * len(texts) if len(texts) == 4 else 1.5 * len(texts)
        return [expected(texts)]

    first = open_cache(tmp_path)
    first.add(TEXTS, compute, block=4)  # 8 seconds for the four shortest texts, 3 for the other two
    assert first.cost([*TEXTS, *TEXTS]) == Cost(11.0, 0.0, 6, 0)
    second = open_cache(tmp_path)
    second.add(TEXTS, Compute())
    assert second.cost(TEXTS) == Cost(11.0, 11.0, 6, 6)
    shortest = sorted(TEXTS, key=len)
    assert second.cost(shortest[3:5]) == Cost(3.5, 3.5, 2, 2)
    assert second.cost([]) == Cost(0.0, 0.0, 0, 0)


def test_a_resumed_run_is_charged_like_any_other(tmp_path: Path) -> None:
    killed = open_cache(tmp_path)
    killed.add(TEXTS[:2], Compute())
    resumed = open_cache(tmp_path)
    resumed.add(TEXTS, Compute())
    other = open_cache(tmp_path)
    other.add(TEXTS, Compute())
    assert resumed.cost(TEXTS).seconds == other.cost(TEXTS).seconds > 0
    assert resumed.cost(TEXTS).texts_found == 2
    assert math.isclose(resumed.cost(TEXTS).seconds_found, killed.cost(TEXTS[:2]).seconds)
