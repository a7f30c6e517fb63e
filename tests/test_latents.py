"""Features: what they are known by, and what they cost."""

from __future__ import annotations

import copy
import functools
import gc
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from embedlab import pooling
from embedlab.backbone import FINAL, Backbone
from embedlab.backbone.features import Features
from embedlab.errors import UserError
from embedlab.resources import READ_TOO
from embedlab.source_hash import code_of
from embedlab.strategies.freeze import Freeze
from tests.conftest import TEXTS

OWN = '''
"""A user's poolings."""
import torch
from helpers import first

def take(states, tokens):
    """Take one state of each text."""
    return first(states, tokens) * SCALE

SCALE = 1
made = [lambda states, tokens: take(states, tokens)]
def closed(factor):
    def inside(states, tokens):
        return take(states, tokens) * factor
    return inside
inside = closed(2)
'''
HELPERS = "def first(states, tokens):\n    return states[tokens.offsets[:-1]].float()\n"


def silent(done: int, total: int) -> None:
    pass


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], ModuleType]:
    """Return a function that imports a module's text under a name, in place of an earlier one of that name."""

    def load(name: str, text: str) -> ModuleType:
        path = tmp_path / f"{name.rpartition('.')[2]}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, loaded)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        exec(compile(text, path, "exec"), vars(loaded))
        return loaded

    return load


# What they are known by -------------------------------------------------------------------------------------


def loaded(folder: str, **options: Any) -> Backbone:
    backbone = Backbone(folder, **options)
    backbone.load()
    return backbone


def test_an_edited_pooling_reads_anew(
    module: Callable[[str, str], ModuleType], decoder_folder: Callable[[str], Path]
) -> None:
    backbone = loaded(str(decoder_folder("llama")), dtype="float32")
    module("helpers", HELPERS)
    latents = {}
    for scale in (1, 2):
        own = module("mine", OWN.replace("SCALE = 1", f"SCALE = {scale}"))
        latents[scale] = Features(backbone, own.take, "keep", bos=True).get(TEXTS)
    assert torch.equal(latents[2], 2 * latents[1])


@pytest.mark.parametrize(
    ("old", "new"),
    [("SCALE = 1", "SCALE = 2"), ("* SCALE", "+ SCALE"), ("import torch", "import torch as torch_too")],
)
def test_a_users_whole_module_counts(module: Callable[[str, str], ModuleType], old: str, new: str) -> None:
    module("helpers", HELPERS)
    before = code_of(module("mine", OWN).take)
    assert before is not None
    assert code_of(module("mine", OWN.replace(old, new)).take) not in (None, before)


def test_the_modules_it_imports_count(module: Callable[[str, str], ModuleType]) -> None:
    module("helpers", HELPERS)
    before = code_of(module("mine", OWN).take)
    module("helpers", HELPERS.replace("[:-1]", "[1:] - 1"))
    assert code_of(module("mine", OWN).take) not in (None, before)


def test_comments_docstrings_and_layout_do_not_count(module: Callable[[str, str], ModuleType]) -> None:
    module("helpers", HELPERS)
    before = code_of(module("mine", OWN).take)
    text = OWN.replace("Take one", "Give one").replace("SCALE = 1", "SCALE  =  1  # none").replace("A user's", "Our")
    assert code_of(module("mine", text).take) == before is not None


def test_of_our_poolings_only_what_they_use_counts(module: Callable[[str, str], ModuleType]) -> None:
    text = Path(pooling.__file__).read_text()
    names = pooling.__all__[1:]

    def codes(text: str) -> dict[str, str | None]:
        loaded = module("embedlab.poolings_of_a_test", text)
        return {name: code_of(getattr(loaded, name)) for name in names}

    before = codes(text)
    assert None not in before.values()
    assert len(set(before.values())) == len(names)
    more = codes(text.replace("Average the states", "Take the mean of") + "\n\ndef another() -> None: ...\n")
    assert more == before
    edited = codes(text.replace("weights = weights.float()", "weights = weights.float() ** 2"))
    assert {name for name in names if edited[name] != before[name]} == {"mean", "weighted_mean"}
    edited = codes(text.replace("import torch\n", "import torch  as  torch\n"))
    assert {name for name in names if edited[name] != before[name]} == {"mean", "last_content", "weighted_mean"}


class Pool:
    def __call__(self, states: Tensor, tokens: object) -> Tensor:
        return states


@pytest.mark.parametrize("which", ["lambda", "closure", "partial", "object", "gone"])
def test_what_has_no_code_of_its_own_is_not_shared(module: Callable[[str, str], ModuleType], which: str) -> None:
    module("helpers", HELPERS)
    own = module("mine", OWN)
    functions = {
        "lambda": own.made[0],
        "closure": own.inside,
        "partial": functools.partial(own.take),
        "object": Pool(),
        "gone": module("mine", OWN) and own.take,  # of a module that was loaded again since
    }
    assert code_of(functions[which]) is None


def test_latents_that_cannot_be_shared_say_so_and_leave_nothing(
    decoder_folder: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    backbone = loaded(str(decoder_folder("llama")), dtype="float32")
    first, second = (Features(backbone, lambda s, t: pooling.mean(s, t), "keep", bos=True) for _ in range(2))
    first.precompute(TEXTS, silent)
    assert caplog.text.count("are not shared with other runs") == 1
    assert len(second.store.missing(TEXTS)) == len(TEXTS)
    folder = first.store.folder
    assert folder.exists()
    del first
    gc.collect()
    assert not folder.exists()


def test_all_that_decides_the_numbers_is_in_the_key(decoder_folder: Callable[[str], Path]) -> None:
    def folder(name: str = "llama", bos: bool = True, pool: object = pooling.last, **options: object) -> Path:
        options = {"dtype": "float32", **options}
        return Features(loaded(str(decoder_folder(name)), **options), pool, "keep", bos).store.folder  # type: ignore[arg-type]

    others = [
        folder("qwen2"),
        folder(bos=False),
        folder(pool=pooling.mean),
        folder(dtype="bfloat16"),
        folder(max_length=10),
    ]
    assert len({folder(), *others}) == len(others) + 1
    backbone = loaded(str(decoder_folder("llama")), dtype="float32")
    options: list[dict[str, Any]] = [{}, {"layers": [FINAL]}, {"layers": [1]}, {"pool_begin": True}]
    options += [{"kept_as": torch.bfloat16}]
    assert len({Features(backbone, pooling.last, bos=True, **own).store.folder for own in options}) == len(options)
    same = {Features(backbone, pooling.last, pool_begin=own).store.folder for own in (False, True)}
    assert (len(same) == 1) == (not backbone.tokenization.begin), (
        "where nothing stands before a text, nothing is pooled"
    )
    assert folder() == folder(tokens_per_pass=7) == folder(packed=False)


# One pass for all -------------------------------------------------------------------------------------------


@pytest.fixture
def wanted(decoder_folder: Callable[[str], Path]) -> Callable[..., list[Features]]:
    """Return a function that opens what three runs of a study want of one decoder."""

    def open_all() -> list[Features]:
        backbone = loaded(str(decoder_folder("gpt2")), dtype="bfloat16")
        return [
            Features(backbone, pooling.mean, bos=True),
            Features(backbone, pooling.last, bos=True, layers=[FINAL, 0, 2]),
            Features(backbone, pooling.mean, bos=True, layers=[1], pool_begin=True, kept_as=torch.float32),
        ]

    return open_all


def keep_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedlab.backbone.feature_cache.cache_root", lambda: folder)


def forbid_pooling(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> Tensor:
        raise AssertionError("the latents are on disk already")

    monkeypatch.setattr(Backbone, "pool", forbidden)


@pytest.mark.parametrize("first", range(3))
def test_whoever_reads_first_reads_for_all(
    wanted: Callable[..., list[Features]], first: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keep_in(tmp_path / "alone", monkeypatch)
    alone = [own.get(TEXTS) for own in wanted()]
    keep_in(tmp_path / "together", monkeypatch)
    wishes = [own.wish for own in wanted()]
    keys = {wish[0] for wish in wishes if wish is not None}
    assert len(keys) == 1
    monkeypatch.setenv(READ_TOO, json.dumps({keys.pop(): [wish[1] for wish in wishes if wish is not None]}))
    reader = wanted()[first]
    reader.precompute(TEXTS[:3], silent)
    reader.precompute(TEXTS, silent)
    others = wanted()
    forbid_pooling(monkeypatch)
    for own, expected in zip(others, alone, strict=True):
        assert torch.equal(own.get(TEXTS), expected)
    costs = [own.cost() for own in others]
    assert {(own.texts, own.texts_found) for own in costs} == {(len(TEXTS), len(TEXTS))}
    # The embedding and three blocks; the final norm too; the embedding and one block.
    seconds = [own.seconds for own in costs]
    assert [own / seconds[1] for own in seconds] == pytest.approx([4 / 5, 1, 2 / 5])
    assert reader.cost().seconds == pytest.approx(seconds[first])


def broken(states: Tensor, batch: object) -> Tensor:
    raise RuntimeError("a fault of the other run")


@pytest.mark.parametrize("name", ["broken", "gone"])
def test_a_fault_of_another_run_is_its_own(
    wanted: Callable[..., list[Features]], name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: Any
) -> None:
    keep_in(tmp_path, monkeypatch)
    own, other, _ = wanted()
    assert own.wish is not None
    assert other.wish is not None
    faulty = {**other.wish[1], "pooling": ["tests.test_latents", name]}
    monkeypatch.setenv(READ_TOO, json.dumps({own.wish[0]: [faulty, own.wish[1]]}))
    assert own.get(TEXTS).shape == (len(TEXTS), own.backbone.num_layers, own.backbone.width)
    assert "a fault of the other run" in caplog.text or "has no attribute 'gone'" in caplog.text
    monkeypatch.setattr(pooling.mean, "__code__", broken.__code__)
    with pytest.raises(RuntimeError, match="a fault of the other run"):  # and one of its own is raised
        own.get([*TEXTS, "a new text"])


def test_other_tokens_are_not_read_for_others(
    decoder_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = loaded(str(decoder_folder("gpt2")), dtype="float32")
    other = Features(backbone, pooling.last, bos=True)
    assert other.wish is not None
    monkeypatch.setenv(READ_TOO, json.dumps({other.wish[0]: [other.wish[1]]}))
    for own in ({"bos": False}, {"bos": True, "final_punctuation": "strip"}):
        features = Features(backbone, pooling.mean, **own)
        assert features.wish is not None
        assert features.wish[0] != other.wish[0]
        features.precompute(TEXTS, silent)
    assert other.store.missing(TEXTS) != []
    assert Features(backbone, lambda s, t: pooling.mean(s, t)).wish is None


def test_what_cannot_be_kept_for_others_is_not(
    wanted: Callable[..., list[Features]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keep_in(tmp_path, monkeypatch)
    own, other, _ = wanted()
    assert other.wish is not None
    monkeypatch.setenv(READ_TOO, json.dumps({other.wish[0]: [other.wish[1]]}))
    folder = other.store.folder
    folder.parent.mkdir(parents=True)
    folder.write_text("in the way")
    assert own.get(TEXTS).shape == (len(TEXTS), own.backbone.num_layers, own.backbone.width)
    assert own.store.missing(TEXTS) == []


# What they cost ---------------------------------------------------------------------------------------------


def test_the_precision_of_a_trainer_does_not_show(decoder_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Features are kept for runs of any precision, by the data type of the backbone."""
    plain = Features(loaded(str(decoder_folder("llama")), dtype="float32"), pooling.mean, "keep", True)._compute(TEXTS)[
        0
    ]
    features = Features(loaded(str(decoder_folder("llama")), dtype="float32"), pooling.mean, "keep", True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(features._compute(TEXTS)[0], plain)
    features.backbone.to(torch.bfloat16)
    with pytest.raises(UserError, match=r"`backbone\.dtype` must be what the decoder computes in, got torch\.float32"):
        features._compute(TEXTS)


def test_a_run_that_finds_its_latents_is_charged_what_they_cost(
    decoder_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_latents() -> Features:
        return Features(loaded(str(decoder_folder("gpt2")), dtype="float32"), pooling.last, "strip", bos=False)

    killed, resumed, other = open_latents(), open_latents(), open_latents()
    assert killed.cost().texts == 0
    killed.precompute(TEXTS[:3], silent)
    resumed.precompute([*TEXTS, *TEXTS], silent)

    forbid_pooling(monkeypatch)
    for texts in (TEXTS[:4], TEXTS[4:]):
        other.get(texts)
    assert other.cost().seconds == resumed.cost().seconds > 0
    assert (resumed.cost().texts, resumed.cost().texts_found) == (len(TEXTS), 3)
    assert (other.cost().texts, other.cost().texts_found) == (len(TEXTS), len(TEXTS))
    assert other.cost().seconds_found == other.cost().seconds
    assert other.cost(TEXTS[:3]).seconds == killed.cost().seconds


def test_a_copy_opens_a_cache_of_its_own(decoder_folder: Callable[[str], Path]) -> None:
    latents = Features(loaded(str(decoder_folder("llama")), dtype="float32"), pooling.last, "keep", bos=True)
    expected = latents.get(TEXTS)
    assert torch.equal(copy.deepcopy(latents).get(TEXTS), expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_latents_of_the_mlp_are_what_transformers_adds_to_the_stream(
    decoder_folder: Callable[[str], Path], kind: str
) -> None:
    folder = decoder_folder(kind)
    backbone = Backbone(str(folder), dtype="float32", tokens_per_pass=64)
    backbone.load()
    plain = Features(backbone, pooling.last)
    own = Features(backbone, pooling.last, site="mlp")
    assert own.identity != plain.identity
    assert own.wish != plain.wish, "one pass does not serve both"
    found = own.get(TEXTS)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    blocks = model.layers if hasattr(model, "layers") else model.h
    for text, latents in zip(TEXTS, found, strict=True):
        seen: list[Tensor] = []
        hooks = [
            block.mlp.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out[0, -1])) for block in blocks
        ]
        with torch.no_grad():
            model(torch.tensor(backbone.tokenization.ids([text])))
        for hook in hooks:
            hook.remove()
        torch.testing.assert_close(latents, torch.stack(seen), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(plain.get(TEXTS), found), "the stream is read again afterwards"


def test_latents_of_the_mlp_where_there_is_none_apart(decoder_folder: Callable[[str], Path]) -> None:
    """BLOOM's adds the stream itself; Gemma's is scaled by a norm before it is added."""
    for kind in ("gemma3", "bloom"):
        backbone = Backbone(str(decoder_folder(kind)), dtype="float32")
        backbone.load()
        with pytest.raises(UserError, match=f"(?i)`site` must be residual for {kind}.*, got mlp; leave it out"):
            Features(backbone, pooling.last, site="mlp").get(TEXTS)
    with pytest.raises(UserError, match=r"`blocks` must be blocks where `site` is mlp, got \[1, 'final'\]"):
        Freeze(backbone, blocks=[1, "final"], site="mlp")
