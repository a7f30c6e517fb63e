"""Gradient caching: a batch in chunks has the gradient of the batch in one piece, and takes the memory of a chunk."""

from __future__ import annotations

import copy
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from embedlab.backbone import Backbone, backbone
from embedlab.backbone.tuning import BitFit, Frozen, Full
from embedlab.data import Pairs, Triplets
from embedlab.errors import UserError
from embedlab.strategies.base import Embedder, Trainable, Training
from embedlab.strategies.lora_bi import LoRABiEncoder
from embedlab.strategies.sgpt_bi import SGPTBiEncoder
from tests import processes
from tests.conftest import SCORES, TEXTS
from tests.test_distributed import part_of

Folder = Callable[[str], Path]
SHIFTED = [*TEXTS[3:], *TEXTS[:3]]
HARD = [[f"{text} Or not?" for text in (TEXTS * 2)[i : i + i % 3]] for i in range(8)]  # none, one or two each
BATCHES = {
    "triplets": Triplets(TEXTS, [f"It is said: {text}" for text in TEXTS[:7]] + SHIFTED[7:], HARD),
    "pairs": Pairs(TEXTS, SHIFTED, torch.tensor(SCORES)),
}
KINDS: dict[str, Callable[..., Any]] = {
    "BitFit": SGPTBiEncoder,
    "brackets": lambda own, **more: SGPTBiEncoder(own, brackets=True, tuning=BitFit(add=True), **more),
    "full": lambda own, **more: SGPTBiEncoder(own, tuning=Full(), training=Training(), **more),
    "LoRA": lambda own, **more: LoRABiEncoder(own, rank=4, dropout=0.1, **more),
}
RELATIVE = 1e-5  # of the length of a gradient, parameter by parameter


def build(folder: Path, kind: str, chunk_size: int | None, dropout: bool, **options: Any) -> Any:
    """Build a strategy, with adapters that do something; in evaluation mode nothing is dropped."""
    torch.manual_seed(0)
    strategy = KINDS[kind](Backbone(str(folder), **{"dtype": "float32", **options}), chunk_size=chunk_size)
    strategy.configure_model()
    with torch.no_grad():
        for name, parameter in strategy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return strategy.train(dropout)


def gradients(strategy: Any, loss: Tensor) -> tuple[float, dict[str, Tensor], int]:
    """Return loss, gradients by name and the tokens that were trained on."""
    loss.backward()
    own = {name: copy.deepcopy(p.grad) for name, p in strategy.named_parameters() if p.requires_grad}
    assert own
    return loss.item(), own, strategy.backbone.trained_tokens


def learn(folder: Path, kind: str, batch: Any, chunk_size: int | None, dropout: bool = False, **options: Any) -> Any:
    strategy = build(folder, kind, chunk_size, dropout, **options)
    torch.manual_seed(1)
    found = gradients(strategy, strategy.loss(batch))
    return *found, torch.rand(1).item()


def off(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest distance of two gradients of a parameter, by the length of the second."""
    assert found.keys() == expected.keys()
    return max(float((found[name] - own).norm() / own.norm()) for name, own in expected.items())


def hold_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute chunks as ever, and hold all of their activations: what gradient caching must equal."""
    monkeypatch.setattr(backbone, "checkpoint", lambda function, *arguments, use_reentrant: function(*arguments))


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    ("kind", "decoder"),
    [("BitFit", "gpt2"), ("BitFit", "llama"), ("brackets", "gpt2"), ("full", "llama"), ("LoRA", "llama")],
)
def test_chunks_have_the_gradient_of_the_whole_batch(
    decoder_folder: Folder, kind: str, decoder: str, batch: str, chunk_size: int
) -> None:
    loss, whole, tokens, _ = learn(decoder_folder(decoder), kind, BATCHES[batch], None)
    own_loss, own, own_tokens, _ = learn(decoder_folder(decoder), kind, BATCHES[batch], chunk_size)
    assert own_loss == pytest.approx(loss, rel=1e-5)
    assert own_tokens == tokens, "what is computed again is no more training"
    assert off(own, whole) < RELATIVE


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("kind", "decoder"), [("BitFit", "gpt2"), ("full", "gpt2"), ("LoRA", "llama")])
def test_dropout_is_the_same_when_a_chunk_is_computed_again(
    decoder_folder: Folder, kind: str, decoder: str, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = decoder_folder(decoder)
    plain = learn(folder, kind, BATCHES[batch], 3)
    whole = learn(folder, kind, BATCHES[batch], None, dropout=True)
    assert off(learn(folder, kind, BATCHES[batch], 100, dropout=True)[1], whole[1]) < RELATIVE, "one chunk is the batch"
    cached = learn(folder, kind, BATCHES[batch], 3, dropout=True)
    hold_all(monkeypatch)
    held = learn(folder, kind, BATCHES[batch], 3, dropout=True)
    assert cached[0] == held[0]
    assert cached[2:] == held[2:], "as many tokens, and the next random number is the same"
    assert off(cached[1], held[1]) < RELATIVE
    assert off(cached[1], plain[1]) > 1e-2, "something was dropped"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("more", [{"packed": False}, {"checkpoint_activations": True}])
def test_chunks_go_with_padding_and_with_checkpoints_of_blocks(
    decoder_folder: Folder, dtype: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = learn(decoder_folder("llama"), "LoRA", BATCHES["triplets"], 3, dropout=True, dtype=dtype, **more)
    hold_all(monkeypatch)
    held = learn(decoder_folder("llama"), "LoRA", BATCHES["triplets"], 3, dropout=True, dtype=dtype, **more)
    assert cached[0] == held[0]
    assert off(cached[1], held[1]) < RELATIVE


def test_texts_that_differ_in_case_or_blanks_are_no_negatives(decoder_folder: Folder) -> None:
    one, other = ("A dog runs.", "A cat."), (" a dog RUNS. ", "x")
    strategy = build(decoder_folder("llama"), "BitFit", None, dropout=False)
    logged: dict[str, Any] = {}
    strategy.record = lambda name, value: logged.update({name: float(value)})
    strategy.loss(Triplets([one[0], "else"], [one[1], other[0]], [[other[1]], ["y"]]))
    assert logged == {"negatives": 2.5}, (
        "the second positive is the first anchor, so that it has two negatives, not three"
    )


def test_chunks_go_with_mixed_precision_of_the_trainer(decoder_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def mixed() -> Any:
        strategy = build(decoder_folder("gpt2"), "full", 3, dropout=True)
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            loss = strategy.loss(BATCHES["triplets"])
        return gradients(strategy, loss)

    cached = mixed()
    hold_all(monkeypatch)
    held = mixed()
    assert cached[0] == held[0]
    assert off(cached[1], held[1]) < RELATIVE


class Step(nn.Module):
    """The loss as a forward, for data-parallel training."""

    def __init__(self, strategy: Any) -> None:
        super().__init__()
        self.strategy = strategy

    def forward(self, batch: Any) -> Tensor:
        loss: Tensor = self.strategy.loss(batch)
        return loss


def in_part(rank: int, folder: Path, kind: str, batch: str, chunk_size: int | None, dropout: bool, hold: bool) -> Any:
    """Give loss, averaged gradients and own tokens of a process for its part of a batch."""
    strategy = build(folder, kind, chunk_size, dropout)
    step = DistributedDataParallel(Step(strategy))
    with pytest.MonkeyPatch.context() as patch:
        if hold:
            hold_all(patch)
        torch.manual_seed(1 + rank)
        loss, own, tokens = gradients(strategy, step(part_of(BATCHES[batch], rank)))
    return loss, {name: gradient.tolist() for name, gradient in own.items()}, tokens


def tensors(gradients: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.tensor(own) for name, own in gradients.items()}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    ("kind", "decoder"),
    [("BitFit", "gpt2"), pytest.param("full", "llama", marks=pytest.mark.slow), ("LoRA", "llama")],
)
def test_two_processes_with_chunks_have_the_gradient_of_one_without(
    decoder_folder: Folder, kind: str, decoder: str, batch: str
) -> None:
    folder = decoder_folder(decoder)
    loss, whole, _, _ = learn(folder, kind, BATCHES[batch], None)
    uncached = processes.in_two(in_part, folder, kind, batch, None, False, False)
    for own, other in zip(processes.in_two(in_part, folder, kind, batch, 2, False, False), uncached, strict=True):
        assert own[0] == pytest.approx(loss, rel=1e-5)
        assert own[2] == other[2]
        assert off(tensors(own[1]), whole) < RELATIVE


@pytest.mark.parametrize(("kind", "decoder"), [("full", "gpt2"), ("LoRA", "llama")])
def test_two_processes_drop_the_same_again(decoder_folder: Folder, kind: str, decoder: str) -> None:
    own = [
        processes.in_two(in_part, decoder_folder(decoder), kind, "triplets", 2, True, hold) for hold in (False, True)
    ]
    for cached, held in zip(*own, strict=True):
        assert (cached[0], cached[2]) == (held[0], held[2])
        assert off(tensors(cached[1]), tensors(held[1])) < RELATIVE


def test_of_each_chunk_only_the_vectors_are_held(decoder_folder: Folder) -> None:
    held, again = {}, []
    for chunk_size in (None, 4):
        for times in (1, 4):
            texts = [f"{text} {n}" for n in range(times) for text in TEXTS]
            strategy = build(decoder_folder("llama"), "BitFit", chunk_size, dropout=True)
            sizes: list[int] = []
            with torch.autograd.graph.saved_tensors_hooks(lambda x, to=sizes: to.append(x.numel()) or x, lambda x: x):
                vectors = strategy.embed(texts)
            held[chunk_size, times] = sum(sizes)
            if chunk_size:
                again.append(strategy.backbone.trained_tokens)
                vectors.sum().backward()
                assert strategy.backbone.trained_tokens == again[-1]
    assert held[None, 4] > 3.5 * held[None, 1]
    assert held[4, 4] < held[None, 1] / 10


def test_equal_texts_are_computed_once(decoder_folder: Folder) -> None:
    tokens = []
    for chunk_size in (None, 2):
        strategy = build(decoder_folder("llama"), "LoRA", chunk_size, dropout=False)
        vectors = strategy.embed([*TEXTS, *TEXTS])
        assert torch.equal(vectors[:8], vectors[8:])
        tokens.append(strategy.backbone.trained_tokens)
    assert tokens[0] == tokens[1] == sum(map(len, strategy.backbone.tokenization.ids(TEXTS)))


def test_a_size_that_is_none_is_refused(decoder_folder: Folder) -> None:
    own = Backbone(str(decoder_folder("llama")))
    for kind in (SGPTBiEncoder, LoRABiEncoder):
        with pytest.raises(UserError, match="^`chunk_size` must be at least 1 text, got 0; leave it out"):
            kind(own, chunk_size=0)
    with pytest.raises(
        UserError, match="^`chunk_size` must be left out where `tuning` is Frozen, .* got 8; leave it out"
    ):
        SGPTBiEncoder(own, tuning=Frozen(), linear=4, training=Training(), chunk_size=8)


# What a run does with it --------------------------------------------------------------------------------------


def words(place: Path, folder: Path, data: str) -> list[str]:
    """Write the data of a run; give its command."""
    rows = [f"{a}\t{b}\t{a} {b}" for a, b in zip(TEXTS, SHIFTED, strict=True)]
    (place / "triplets.tsv").write_text("\n".join(["anchor\tpositive\tnegative", *rows]) + "\n")
    pairs = [f"{a}\t{b}\t{score}" for a, b, score in zip(TEXTS, SHIFTED, SCORES, strict=True)]
    (place / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *pairs]) + "\n")
    own = ["fit", "-c", "strategies/lora_bi", "--run_dir", "r", "--trainer.accelerator", "cpu"]
    own += ["--model.backbone.name", str(folder), "--model.backbone.dtype", "float32"]
    own += ["--data.train", f"{{path: {data}.tsv}}", "--data.validation", "{path: pairs.tsv}"]
    own += ["--data.test", "{own: {path: pairs.tsv}}", "--data.batch_size", "4", "--trainer.max_epochs", "2"]
    own += ["--trainer.log_every_n_steps", "1", "--trainer.logger", "lightning.pytorch.loggers.CSVLogger"]
    return [*own, *(f"--trainer.logger.{name}" for name in ("save_dir=.", "name=", "version="))]


def logged(place: Path, name: str) -> list[float]:
    with (place / "r" / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_a_run_in_chunks_learns_the_same_and_tells_its_negatives(tmp_path: Path, decoder_folder: Folder) -> None:
    losses = []
    for name, more in {"whole": [], "chunks": ["--model.chunk_size", "3"], "two": ["--model.chunk_size", "2"]}.items():
        place = tmp_path / name
        place.mkdir()
        start = processes.run_two if name == "two" else processes.run
        start(place, [*words(place, decoder_folder("llama"), "triplets"), *more])
        losses.append(logged(place, "train/loss"))
        # Of eight candidates the positive is none, nor are a text's double and its own text.
        negatives = logged(place, "train/negatives")
        assert len(negatives) == len(losses[-1]) == 4
        assert all(6 <= own <= 7 for own in negatives)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


def test_accumulation_is_refused_where_rows_are_compared(tmp_path: Path, decoder_folder: Folder) -> None:
    refused = (
        "`trainer.accumulate_grad_batches` must be 1 for LoRABiEncoder here, whose loss compares the rows of a batch, and "
        "not those of accumulated ones, got 4; set `data.batch_size` 16 instead, and `model.chunk_size` to keep the memory."
    )
    for data in ("triplets", "pairs"):
        own = [*words(tmp_path, decoder_folder("llama"), data), "--trainer.accumulate_grad_batches", "4"]
        assert refused in processes.run(tmp_path, own, 2).stderr
        assert not (tmp_path / "r").exists()
    processes.run(tmp_path, [*own, "--model.pair_loss", "embedlab.losses.cosine_mse"])
    own[2] = "strategies/freeze"
    told = processes.run(tmp_path, [*own, "--run_dir", "f", "--model.pretraining", "null"], 2).stderr
    assert "must be 1 for Freeze here, whose loss compares the rows" in told
    assert told.strip().endswith("set `data.batch_size` 16 instead.")


def test_negatives_are_those_that_are_not_masked(decoder_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, float] = {}
    monkeypatch.setattr(Trainable, "record", lambda self, name, value: told.update({name: float(value)}))
    strategy = build(decoder_folder("llama"), "BitFit", None, dropout=False)
    strategy.loss(Triplets(["a", "b"], ["c", "d"], [["e", "f"], []]))
    assert told == {"negatives": 3}
    strategy.loss(Triplets(["a", "b"], ["c", "d"], [["c"], ["a"]]))
    assert told == {"negatives": 2}, "of `a` only `d`, as `c` is its positive; of `b` all but its own"
    told.clear()
    strategy.loss(BATCHES["pairs"])
    assert told == {}, "scored pairs have none"
    assert isinstance(strategy, Embedder)
