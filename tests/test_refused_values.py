"""Values of any kind for any option: what the parser refuses is told in one sentence, without the parser's words."""

from __future__ import annotations

import inspect
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentError
from lightning.pytorch import Trainer

from embedlab.data import DataModule
from embedlab.errors import UserError
from embedlab.strategies.base import EmbeddingStrategy
from embedlab.strategies.freeze import Freeze
from embedlab.strategies.lora_bi import LoRABiEncoder
from embedlab.strategies.sgpt_bi import SGPTBiEncoder
from embedlab.training.help import HelpfulParser
from embedlab.training.values import check_groups, explain
from tests.test_malformed import JSON, malformed
from tests.test_manners import INTERNALS

SECTIONS = {"trainer": Trainer, "data": DataModule}
CLASSES = (Freeze, LoRABiEncoder, SGPTBiEncoder)


def parser() -> HelpfulParser:
    """Return the parser of a run, of which the tests need one."""
    made = HelpfulParser(exit_on_error=False)
    made.add_lightning_class_args(Trainer, "trainer")
    made.add_lightning_class_args(EmbeddingStrategy, "model", subclass_mode=True)
    made.add_lightning_class_args(DataModule, "data")
    return made


PARSER = parser()
MODEL = st.sampled_from([(own, name) for own in CLASSES for name in inspect.signature(own).parameters])
FLAT = st.sampled_from(
    [(section, name) for section, own in SECTIONS.items() for name in inspect.signature(own).parameters]
)


def told(content: dict[str, Any], option: str) -> None:
    """Assert that content is taken, or refused in a sentence that names the option."""
    content = json.loads(json.dumps(content).replace("\\ud800", ""))
    try:
        check_groups(PARSER.parse_object(content))
        return
    except ArgumentError as error:
        if "accept option" in str(error) or "not accepted" in str(error):  # an unknown name, not a value
            return
        if "too large to convert to float" in str(error):  # jsonargparse names no option then
            return
        sentence = explain(str(error))
    except UserError as error:
        sentence = str(error)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert f"`{option}" in sentence or "names are words" in sentence
    assert " must be " in sentence
    assert not [own for own in INTERNALS if own in sentence], sentence


@malformed
@given(MODEL, JSON)
def test_options_of_strategies(option: tuple[type, str], value: Any) -> None:
    kind, name = option
    told({"model": {"class_path": kind.__name__, "init_args": {name: value}}}, f"model.{name}")


@malformed
@given(FLAT, JSON)
def test_options_of_trainer_and_data(option: tuple[str, str], value: Any) -> None:
    section, name = option
    told({"model": {"class_path": "Freeze"}, section: {name: value}}, f"{section}.{name}")
