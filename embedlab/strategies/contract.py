"""What a strategy promises, checked as early as it can be told: when its class is defined, when it is built, when it returns.

A breach is told in a sentence that names class and method. An error that a strategy raises itself is left alone.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from embedlab.backbone import Backbone
from embedlab.data import DataModule
from embedlab.errors import UserError
from embedlab.strategies.arguments import arguments_of

__all__ = ["Progress", "built", "check_class", "loss_of", "silent", "train_texts", "warn"]

Progress = Callable[[int, int], None]
log = logging.getLogger(__name__)

# How the methods that a strategy may define are called: arguments that are always given, and those given at times.
CALLS: Final = {
    "check_decoder": ((), ()),
    "compares_rows": (("batch",), ()),
    "configure_model": ((), ()),
    "doubts": (("texts",), ()),
    "embed": (("texts",), ("role",)),
    "loss": (("batch",), ()),
    "prepare": (("texts",), ()),
    "rate_factors": (("name",), ()),
    "remarks": ((), ()),
    "score": (("first", "second"), ()),
    "stages": ((), ()),
}
# What is defined in place of a method that is the same for all strategies.
INSTEAD: Final = {
    "configure_optimizers": "set `self.plan` in `__init__`",
    "predict_step": "define `score` or `embed`",
    "score": "define `embed`, or subclass `EmbeddingStrategy`",
    "test_step": "define `score` or `embed`",
    "training_step": "define `loss`",
    "validation_step": "define `score` or `embed`",
}


def silent(done: int, total: int) -> None:
    """Ignore progress: what is used where nobody asks for it."""


def warn(doubts: Iterable[str]) -> None:
    """Warn of what is doubtful, while something can be done about it."""
    for own in doubts:
        log.warning("%s", own)


def check_class(kind: type) -> None:
    """Check what can be told of a class of strategies; let what its methods return be checked.

    Raises:
        UserError: If it overrides what is the same for all, or has a method that cannot be called as it will be.
    """
    for base in kind.__mro__[1:]:
        for name, value in vars(base).items() if base.__module__.startswith("embedlab.") else ():
            if getattr(value, "__final__", False) and inspect.getattr_static(kind, name) is not value:
                way = INSTEAD.get(name, "choose another name")
                raise UserError(
                    f"`{_name(kind)}.{name}` must be left to `{base.__name__}`, which has the last word; {way}."
                )
    own = {name: value for name, value in vars(kind).items() if inspect.isfunction(value)}
    for name, (always, sometimes) in CALLS.items():
        if name in own:
            _check_call(own[name], always, sometimes)
    if (init := own.get("__init__")) is not None:
        backbone = inspect.signature(init).parameters.get("backbone")
        if backbone is not None and backbone.annotation is inspect.Parameter.empty:
            raise UserError(
                f"`{_name(init)}` must say what `backbone` is, got no annotation; write `backbone: Backbone`, or the options of "
                "a configuration never become one."
            )
        kind.__init__ = built(init)  # type: ignore[misc]
    for name, dimensions in (("embed", 2), ("score", 1)):
        method = own.get(name)
        if method is not None and not getattr(method, "__isabstractmethod__", getattr(method, "__final__", False)):
            setattr(kind, name, _returning(method, dimensions))


def _check_call(method: Any, always: tuple[str, ...], sometimes: tuple[str, ...]) -> None:
    """Refuse a method that does not take the arguments it will be given, by position."""
    signature = inspect.signature(method)
    try:
        for given in {always, (*always, *sometimes)}:
            signature.bind(None, *given)
    except TypeError:
        wanted = ", ".join(["self", *always, *(f"{name}=None" for name in sometimes)])
        plain = ", ".join(str(own.replace(annotation=own.empty)) for own in signature.parameters.values())
        raise UserError(
            f"`{_name(method)}` must take ({wanted}), got ({plain}); write `def {method.__name__}({wanted})`."
        ) from None


def built(init: Callable[..., None]) -> Callable[..., None]:
    """Let a constructor be followed by a note of its arguments and a check of what it has built, once for each object."""

    @functools.wraps(init)
    def checked(self: Any, *arguments: Any, **named: Any) -> None:
        begun = False
        try:
            init(self, *arguments, **named)
            begun = "progress" in vars(self)
        except AttributeError:
            begun = "_modules" in vars(self)  # set by torch; without it, nothing can be set on the object
            if begun:
                raise
        if not begun:
            raise UserError(
                f"`{_name(type(self))}.__init__` must call `super().__init__()`, got none before its first attribute; make "
                "it the first line."
            )
        if type(self).__init__ is checked:
            self.built_with = arguments_of(init, (self, *arguments), named)
            _check_built(self)

    return checked


def _check_built(strategy: Any) -> None:
    """Check that a strategy has set what will be read.

    Raises:
        UserError: If it has not.
    """
    place = f"`{_name(type(strategy))}.__init__`"
    if not isinstance(strategy.backbone, Backbone | None):
        raise UserError(
            f"{place} must set `self.backbone` to a `Backbone`, got {_came(strategy.backbone)}; pass it on."
        )
    other = next((name for name, own in strategy.named_modules() if isinstance(own, Backbone)), "backbone")
    if strategy.backbone is None and other != "backbone":
        raise UserError(f"{place} must keep the decoder as `self.backbone`, got `self.{other}`; rename it.")
    for name, kind in strategy.needs.items():
        if not isinstance(found := getattr(strategy, name, None), kind):
            example = f"self.{name} = {kind.__name__}()"
            raise UserError(
                f"{place} must set `self.{name}` to a `{kind.__name__}`, got {_came(found)}; write `{example}`."
            )


def _returning(method: Callable[..., Any], dimensions: int) -> Callable[..., Tensor]:
    """Let what `embed` or `score` returns be checked, and be float32."""
    what, shape = ("score per pair", "({},)") if dimensions == 1 else ("vector per text", "({}, E)")

    signature = inspect.signature(method)
    texts = list(signature.parameters)[1]

    @functools.wraps(method)
    def checked(self: Any, *given: Any, **named: Any) -> Tensor:
        result = method(self, *given, **named)
        number = len(signature.bind(self, *given, **named).arguments[texts])
        if isinstance(result, Tensor) and result.ndim == dimensions and len(result) == number:
            if result.is_floating_point():
                return result.float()
        raise UserError(
            f"`{_name(method)}` must return one {what}, a float32 tensor of shape {shape.format(number)} here, got "
            f"{_came(result)}; return one."
        )

    return checked


def loss_of(function: Callable[[Any], Tensor], batch: Any) -> Tensor:
    """Return the loss of a batch, a scalar () with a gradient.

    Raises:
        UserError: If it is anything else.
    """
    loss: Any = function(batch)
    if not (isinstance(loss, Tensor) and loss.ndim == 0 and loss.is_floating_point()):
        raise UserError(
            f"`{_name(function)}` must return a scalar, a float tensor of shape (), got {_came(loss)}; return one."
        )
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise UserError(
            f"`{_name(function)}` must depend on a parameter that trains, got a tensor without gradient; let something train in "
            "`configure_model`, and detach nothing."
        )
    return loss


def train_texts(strategy: LightningModule) -> list[str]:
    """Return the training texts of the data that a strategy's trainer was given.

    Raises:
        UserError: If it has none.
    """
    data = strategy.trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning
    if isinstance(data, DataModule):
        return data.train_texts()
    raise UserError(
        f"`{_name(type(strategy))}` must know the training texts first, got no `DataModule` to take them from; pass one to the "
        "trainer, or call `prepare_once(lambda: texts)` before."
    )


def _came(result: Any) -> str:
    """Say what came in place of what was wanted."""
    if isinstance(result, Tensor):
        return f"a tensor of shape {tuple(result.shape)} and type {str(result.dtype).removeprefix('torch.')}"
    return "None" if result is None else f"an object of {type(result).__module__}.{type(result).__qualname__}"


def _name(own: Any) -> str:
    """Return the dotted path of a class or a function."""
    return f"{own.__module__}.{own.__qualname__}"
