"""A training that diverges stops with one sentence; nothing is kept of what it has become."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from embedlab.errors import UserError
from embedlab.strategies.base import Trainable, Training
from embedlab.training.callbacks import Finite
from embedlab.training.callbacks.finite import CHECK_EVERY
from tests import processes
from tests.test_training import command, place

__all__ = ["place"]  # a fixture


def sentence(done: processes.Done, run: Path) -> str:
    """Return the one sentence of a training that stopped, which has kept nothing."""
    assert done.status == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    assert not [*run.rglob("*.ckpt"), *run.rglob("result.json")]
    return done.stderr.splitlines()[-1]


def test_a_training_that_diverges_stops_at_once(place: Path) -> None:
    done = processes.start(place, command(place, "lora_bi", "r", "--model.training.learning_rate", "1e30")).wait()
    said = sentence(done, place / "r")
    assert "`model.training.learning_rate` must be" in said
    assert "with 1e+30 the loss was nan at step 2 of LoRABiEncoder; lower it." in said


def test_a_stage_that_diverges_stops_at_once(place: Path) -> None:
    more = ["--model.pretraining.source.limit", "200", "--model.pretraining.training.learning_rate", "1e30"]
    done = processes.start(place, command(place, "freeze", "r", *more)).wait()
    said = sentence(done, place / "r")
    assert "stage autoencoders: `training.learning_rate` must be" in said
    assert " at step 2 of Freeze; lower it." in said


def test_two_processes_stop_together(place: Path) -> None:
    words = command(place, "lora_bi", "r", "--model.training.learning_rate", "1e30")
    done = processes.run_two(place, words, statuses=(2, 2))
    assert "with 1e+30 the loss was nan at step 2" in sentence(done, place / "r")


class Line(Trainable):
    """As little as can learn."""

    def __init__(self) -> None:
        super().__init__()
        self.plan = Training(learning_rate=0.5)
        self.weight = torch.nn.Parameter(torch.ones(()))

    def score(self, first: Any, second: Any) -> torch.Tensor:
        return self.weight.expand(len(first))

    def loss(self, batch: Any) -> torch.Tensor:
        return self.weight


def trainer(step: int, processes: int = 1) -> Any:
    return SimpleNamespace(global_step=step, world_size=processes, state=SimpleNamespace(fn="fit"))


@pytest.mark.parametrize(
    "keep",
    [
        lambda own, *at: own.on_validation_start(*at),
        lambda own, *at: own.on_save_checkpoint(*at, {}),
        lambda own, *at: own.on_train_end(*at),
    ],
    ids=["validation", "checkpoint", "end"],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_never_kept(keep: Callable[..., None], value: float) -> None:
    """The last loss before them may be finite."""
    own, model = Finite(), Line()
    own.on_before_backward(trainer(6), model, model.weight)
    keep(own, trainer(7), model)
    model.weight.data.fill_(value)
    with pytest.raises(UserError, match=r"with 0\.5 the weights were no longer finite after step 7 of Line"):
        keep(own, trainer(7), model)


def test_where_asking_is_dear_the_first_bad_step_is_named_all_the_same() -> None:
    own, model = Finite(), Line()
    losses = torch.arange(float(CHECK_EVERY))
    losses[7:] = float("inf")
    for step, loss in enumerate(losses[:-1]):
        own.on_before_backward(trainer(step, processes=2), model, loss)
    with pytest.raises(UserError, match="the loss was inf at step 8"):
        own.on_before_backward(trainer(CHECK_EVERY - 1, processes=2), model, losses[-1])


def test_before_anything_is_learned_loss_and_data_are_to_blame() -> None:
    own, model = Finite(), Line()
    with pytest.raises(UserError) as caught:
        own.on_before_backward(trainer(0), model, torch.tensor(float("nan")))
    assert str(caught.value) == (
        "`loss` of Line must be finite, but it was nan at step 1, before anything had been learned; mend the loss or the data."
    )


def test_only_a_rate_that_is_an_argument_is_named_as_one() -> None:
    own, model = Finite(), Line()
    with pytest.raises(
        UserError, match=r"^the learning rate in `self\.plan` must be .* with 0\.5 the loss was nan at step 2"
    ):
        own.on_before_backward(trainer(1), model, torch.tensor(float("nan")))


def tell(rank: int) -> str:
    own, model = Finite(), Line()
    for step in range(CHECK_EVERY):
        loss = float("nan") if (rank, step) == (1, 20) else 1.0
        try:
            own.on_before_backward(trainer(step, processes=2), model, torch.tensor(loss))
        except UserError as error:
            return str(error)
    return "nothing"


def test_what_one_process_finds_stops_the_other() -> None:
    first, second = processes.in_two(tell)
    assert first == second
    assert "the loss was nan at step 21" in first
