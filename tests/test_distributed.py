"""Two processes that share a batch learn what one process learns from all of it."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from embedlab import losses
from embedlab.data import Pairs, Triplets
from embedlab.distributed import gather, gather_lists, share_sum
from embedlab.errors import UserError
from embedlab.strategies.base import Embedder
from embedlab.strategies.contrastive import contrastive_loss
from embedlab.strategies.freeze_network import NetworkOptions, SiameseNetwork
from embedlab.training.callbacks import RandomState
from tests import processes

SPLIT = 3  # rows of the first process, of eight: the parts differ in size
WORDS = ["hen", "egg", "bird", "song", "rain", "snow", "wind", "hail"]
PAIRS = Pairs(WORDS, [*WORDS[1:], WORDS[0]], torch.linspace(0, 1, 8))
TRIPLETS = Triplets(WORDS, [*WORDS[2:], *WORDS[:2]], [[WORDS[(3 * i) % 8]] * (i % 3) for i in range(8)])


class Letters(Embedder):
    """Looks up a vector for every word; enough to have gradients."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(8, 5)

    def embed(self, texts: Sequence[str], role: Any = None) -> torch.Tensor:
        return self.table(torch.tensor([WORDS.index(text) for text in texts]))


def part_of(batch: Pairs | Triplets, rank: int) -> Pairs | Triplets:
    own = slice(0, SPLIT) if rank == 0 else slice(SPLIT, None)
    if isinstance(batch, Pairs):
        assert batch.score is not None
        return Pairs(batch.first[own], batch.second[own], batch.score[own])
    return Triplets(batch.anchor[own], batch.positive[own], batch.negatives[own])


def learn(rank: int | None, batch: Pairs | Triplets, pair_loss: losses.PairLoss) -> tuple[float, list[float]]:
    """Give loss and gradient of a batch, or of a process's part of it, averaged as data-parallel training does."""
    model = Letters()
    loss = contrastive_loss(model, batch if rank is None else part_of(batch, rank), pair_loss, scale=20.0)
    loss.backward()
    gradient = model.table.weight.grad
    assert gradient is not None
    if rank is not None:
        torch.distributed.all_reduce(gradient)
        gradient /= 2
    return loss.item(), gradient.flatten().tolist()


@pytest.mark.parametrize(
    ("batch", "pair_loss"),
    [
        (TRIPLETS, losses.cosent),
        (PAIRS, losses.cosent),
        (PAIRS, losses.log_variance),
        (PAIRS, losses.mse),
    ],
    ids=["ranking", "cosent", "log_variance", "mse"],
)
def test_loss_and_gradient_are_those_of_the_joined_batch(batch: Pairs | Triplets, pair_loss: losses.PairLoss) -> None:
    loss, gradient = learn(None, batch, pair_loss)
    assert any(gradient)
    for own_loss, own_gradient in processes.in_two(learn, batch, pair_loss):
        assert own_loss == pytest.approx(loss, rel=1e-5)
        assert own_gradient == pytest.approx(gradient, rel=1e-4, abs=1e-6)


def rebuild(rank: int | None, relative: bool) -> tuple[float, list[float]]:
    """Give loss and gradient of stage 1 of FREEZE on a batch, or on a process's part of it."""
    torch.manual_seed(0)
    network = SiameseNetwork(2, 6, NetworkOptions(widths=(3,), dropout=0.0))
    network.train_part(autoencoders=True)
    latents = torch.randn(8, 2, 6) * torch.arange(1.0, 9.0)[:, None, None]
    part = slice(None) if rank is None else slice(0, SPLIT) if rank == 0 else slice(SPLIT, None)
    loss = network.reconstruction(latents[part], relative)
    loss.backward()
    gradient = torch.cat([own.grad.flatten() for own in network.coders.parameters() if own.grad is not None])
    if rank is not None:
        torch.distributed.all_reduce(gradient)
        gradient /= 2
    return loss.item(), gradient.tolist()


@pytest.mark.parametrize("relative", [False, True])
def test_autoencoders_learn_from_the_joined_batch(relative: bool) -> None:
    loss, gradient = rebuild(None, relative)
    assert any(gradient)
    for own_loss, own_gradient in processes.in_two(rebuild, relative):
        assert own_loss == pytest.approx(loss, rel=1e-5)
        assert own_gradient == pytest.approx(gradient, rel=1e-4, abs=1e-6)


def tell(rank: int) -> tuple[list[float], list[str], int]:
    joined = gather(torch.full((2 * rank, 1), float(rank)))
    return joined.flatten().tolist(), gather_lists([f"from {rank}"] * (1 + rank)), share_sum(10 + rank)


def test_parts_of_any_size_are_joined_in_order() -> None:
    assert processes.in_two(tell) == [([1.0, 1.0], ["from 0", "from 1", "from 1"], 21)] * 2


def test_one_process_has_it_all() -> None:
    values = torch.ones(3)
    assert gather(values) is values
    assert gather_lists(("a", "b")) == ["a", "b"]
    assert share_sum(4) == 4


def draw(rank: int) -> list[float]:
    torch.manual_seed(5)
    state = RandomState()
    state.on_train_start(SimpleNamespace(global_rank=rank), None)  # type: ignore[arg-type]
    first = torch.rand(4).tolist()
    kept = state.state_dict()
    expected = torch.rand(4).tolist()
    other = RandomState()
    other.load_state_dict(kept)
    trainer: Any = SimpleNamespace(global_rank=rank, world_size=2)
    other.on_train_batch_start(trainer, None, None, 0)  # type: ignore[arg-type]
    assert torch.rand(4).tolist() == expected, "a resumed process draws what it would have drawn"
    return first


def test_processes_draw_random_numbers_of_their_own_and_find_them_again() -> None:
    first, second = processes.in_two(draw)
    torch.manual_seed(5)
    assert first == torch.rand(4).tolist(), "the first one draws what a single process would"
    assert first != second


@pytest.mark.parametrize(
    ("wrong", "came"),
    [
        (lambda predicted, gold: predicted - gold, r"a tensor of shape \(\d+,\) and type float32"),
        (lambda predicted, gold: None, "None"),
        (lambda predicted, gold: losses.mse(predicted, gold).detach(), "a tensor without gradient"),
        (lambda predicted, gold: (predicted > gold).sum(), r"a tensor of shape \(\) and type int64"),
    ],
)
def test_a_pair_loss_that_is_no_loss_is_named(wrong: Any, came: str) -> None:
    with pytest.raises(UserError, match=rf"^`pair_loss` must give a scalar, .*, but \S*<lambda> gave {came}; .*\.$"):
        learn(None, PAIRS, wrong)
