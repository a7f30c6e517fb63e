"""Constructors read from source, on a package made for it."""

from __future__ import annotations

import importlib
import sys
import textwrap
from pathlib import Path

import pytest

from embedlab import signatures
from embedlab.errors import UserError

FILES = {
    "kit/__init__.py": "from .methods.first import First as Renamed\n",
    "kit/parts.py": """
        from __future__ import annotations
        import abc
        from dataclasses import dataclass, field
        from typing import ClassVar, final

        class EmbeddingStrategy(Missing, abc.ABC):
            def __init__(self) -> None: ...

        class Embedder(EmbeddingStrategy, abc.ABC): ...

        @final
        class Backbone(Module):
            def __init__(self, name: str = "small", *, dtype: str = "auto") -> None: ...

        @dataclass
        class Schedule:
            kind: ClassVar[str] = "x"
            epochs: int
            hidden: int = field(default=1, init=False)

        @dataclass
        class Training(Schedule):
            rate: float = 1.0

        class Tuning: ...
        """,
    "kit/methods/__init__.py": "raise RuntimeError('never run')\n",
    "kit/methods/base.py": "raise RuntimeError\n",
    "kit/methods/first.py": '''
        raise RuntimeError("never run")
        from typing import Optional
        import kit.parts as parts
        from ..parts import Backbone, Training, Tuning
        from kit.parts import Embedder

        class _Helper(Embedder): ...
        class Head: ...

        @final
        class First(Embedder):
            """Does it.

            At length.
            """

            def __init__(self, backbone: Backbone, training: "Training | None" = None,
                         other: Optional[parts.Training] = None, many: dict[str, Training] = {},
                         tuning: Tuning | None = None, width: int | Training = 3, *, lr: float) -> None: ...
        ''',
    "kit/methods/second.py": """
        from kit import parts

        class Second(parts.Embedder): ...
        class Loose(parts.Embedder):
            def __init__(self, own: int, **kwargs): ...
        class Half(parts.Embedder):
            @abstractmethod
            def embed(self): ...
        """,
    "mine_alone.py": """
        from kit.methods.first import First
        Built = make()
        class Own(First):
            def helper(self): ...
        class Stranger(Unknown): ...
        class NoStrategy:
            def __init__(self, a): ...
        """,
    "broken_mine.py": "def (:\n",
}


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(content))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    importlib.invalidate_caches()
    return tmp_path


def found(path: str) -> signatures.ClassInfo:
    info = signatures.find(path)
    assert info is not None
    return info


def below(info: signatures.ClassInfo, name: str) -> signatures.Nested | None:
    return signatures.nested(info.parameters[name])


def test_shipped_finds_public_concrete_strategies_only(kit: Path) -> None:
    classes = signatures.shipped(kit / "kit" / "methods", "kit.methods")
    assert list(classes) == ["First", "Second", "Loose"]
    assert not [name for name in sys.modules if name.startswith("kit")]


def test_a_class_is_read_without_running_anything(kit: Path) -> None:
    info = found("kit.methods.first.First")
    assert list(info.parameters) == ["backbone", "training", "other", "many", "tuning", "width", "lr"]
    assert [name for name, own in info.parameters.items() if not own.has_default] == ["backbone", "lr"]
    assert info.ancestors == ("Embedder", "EmbeddingStrategy", "ABC")
    assert (info.has_backbone, info.is_strategy, info.abstract, info.plain) == (True, True, False, True)
    assert info.doc == "Does it."
    assert info.class_path == "kit.methods.first.First"


def test_inherited_constructors_are_followed(kit: Path) -> None:
    second = found("kit.methods.second.Second")
    assert (second.parameters, second.has_backbone, second.open) == ({}, False, False)
    assert "backbone" in found("mine_alone.Own").parameters
    loose = found("kit.methods.second.Loose")
    assert (list(loose.parameters), loose.open) == (["own"], True)
    assert found("kit.methods.second.Half").abstract
    assert found("kit.parts.Embedder").abstract


def test_options_below_an_argument(kit: Path) -> None:
    info = found("kit.methods.first.First")
    backbone = below(info, "backbone")
    assert backbone is not None
    assert (list(backbone.info.parameters), backbone.info.plain) == (["name", "dtype"], True)
    for name in ("training", "other"):
        training = below(info, name)
        assert training is not None
        assert list(training.info.parameters) == ["epochs", "rate"]
        assert training.info.plain
        assert not training.keyed
    many = below(info, "many")
    assert many is not None
    assert many.keyed
    tuning = below(info, "tuning")
    assert tuning is not None
    assert not tuning.info.plain
    assert below(info, "width") is None
    assert below(info, "lr") is None


def test_a_class_of_ones_own_need_not_be_traceable(kit: Path) -> None:
    assert found("mine_alone.Stranger").is_strategy
    assert not found("mine_alone.NoStrategy").is_strategy
    assert signatures.find("mine_alone.Built") is None
    assert found("kit.Renamed").name == "First"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("mine_alone.Ownn", r"defines none of that name; did you mean Own\."),
        ("kit.methods.frist.First", "no module 'kit.methods.frist'"),
        ("nowhere.First", "no module 'nowhere'"),
        ("Tfidff", "is not a strategy"),
        ("broken_mine.First", r"broken_mine\.py, line 1 must be Python"),
    ],
)
def test_what_certainly_is_not_there_is_refused(kit: Path, path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        signatures.find(path)


def test_installed_packages_are_read_too() -> None:
    trainer = found("lightning.pytorch.Trainer")
    assert "max_epochs" in trainer.parameters
    assert not trainer.open


def test_an_edited_file_is_read_again(kit: Path) -> None:
    assert "a" in found("mine_alone.NoStrategy").parameters
    (kit / "mine_alone.py").write_text("class NoStrategy:\n    def __init__(self, other): ...\n")
    assert list(found("mine_alone.NoStrategy").parameters) == ["other"]
