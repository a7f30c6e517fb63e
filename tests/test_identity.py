"""What makes a run another run, and what does not: a table of edits against strategies.

`python -m pytest tests/test_identity.py -k table -s` prints it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import pkgutil
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

import embedlab
from embedlab import cli, runs, source_hash, strategies
from embedlab.backbone.pretrained import best_dtype
from embedlab.data import DataModule
from embedlab.runs.code import ROOMS, older_code, shared_code
from embedlab.source_hash import sources_of
from embedlab.source_imports import FRAME, is_of_a_method
from embedlab.strategies.base import EmbeddingStrategy
from embedlab.training.identity import Identity, identify
from tests.test_architecture import MODULES, heavy, reachable, room

PACKAGE = Path(embedlab.__file__).parent
SHIPPED = PACKAGE.parent / "configs" / "strategies"

OWN_STRATEGY = '''
"""A user's strategy."""
from embedlab.data import Source
from embedlab.backbone import Backbone
from embedlab.pooling import Pooling, mean
from embedlab.strategies.base import Embedder


class Own(Embedder):
    def __init__(
        self,
        backbone: Backbone,
        pooling: Pooling = mean,
        words: str | list[str] = "-",
        more: Source | None = None,
        teacher: Backbone | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.pooling = backbone, pooling

    def embed(self, texts, role=None):
        return self.backbone.pool(texts, self.pooling)  # one vector per text
'''
OWN_POOLING = '''
from torch import Tensor

from embedlab.packing import PackedBatch


def take(states: Tensor, batch: PackedBatch) -> Tensor:
    """Take the first state."""
    from own_project.helpers.first import first

    return first(states, batch)
'''
OWN_HELPER = "def first(states, batch):\n    return states[batch.offsets[:-1]].float()\n"
PAIRS = "sentence1,sentence2,score\n" + "".join(f"Birds sing {i}.,A bird sings.,{i / 9}\n" for i in range(10))

# Of each strategy the file under configs/strategies, and options.
ENCODER = ["--model.init_args.model", "encoder", "--model.init_args.revision", "null"]
TAKE = ["--model.init_args.pooling", "own_project.pooling.take"]
STRATEGIES: dict[str, tuple[str, list[str]]] = {
    "freeze": ("freeze", []),
    "freeze, own pooling": ("freeze", TAKE),
    "sgpt_bi": ("sgpt_bi", []),
    "lora_bi": ("lora_bi", []),
    "learned_pooling": ("learned_pooling", []),
    "sgpt_cross": ("sgpt_cross", []),
    "pooled_decoder": ("pooled_decoder", []),
    "tfidf": ("tfidf", []),
    "sentence_transformer": ("sentence_transformer", ENCODER),
    "own": ("own", TAKE),
}
ALL = set(STRATEGIES)
WITHOUT_DECODER = {"sentence_transformer", "tfidf"}
WITH_DECODER = ALL - WITHOUT_DECODER
FREEZE = {"freeze", "freeze, own pooling"}
BI = {"sgpt_bi", "lora_bi"}
CONTRASTIVE = BI | {"learned_pooling"}


@dataclass
class Run:
    """A run as `fit` has it before it is identified: configuration as parsed, and what is built from it."""

    config: dict[str, Any]
    build: Callable[[], Any]

    def __post_init__(self) -> None:
        """Build strategy and data as the files are now."""
        built = self.build()
        self.model: EmbeddingStrategy = built.model
        self.data: DataModule = built.data
        self.data.setup("fit")
        self.data.setup("test")

    def identity(self, changes: Mapping[str, Any] | None = None) -> Identity:
        config = {**self.config, "trainer": dict(self.config["trainer"])}
        for key, value in (changes or {}).items():
            section, _, name = key.rpartition(".")
            (config[section] if section else config)[name] = value
        given = config["trainer"]
        return identify(config, self.model, self.data, trainer(given["devices"], given.get("precision")))


@functools.cache
def trainer(devices: int | str, precision: int | str | None) -> Trainer:
    return Trainer(devices=devices, precision=precision, accelerator="cpu", logger=False, enable_checkpointing=False)


@dataclass
class Place:
    """A folder with all that runs are made of, which may be edited, and the parser of `fit`."""

    folder: Path
    parser: LightningArgumentParser

    def run(self, strategy: str, *more: str) -> Run:
        name, options = STRATEGIES[strategy]
        words = ["-c", str(self.folder / "protocol.yaml"), "-c", str(self.folder / f"{name}.yaml")]
        words += [] if strategy in WITHOUT_DECODER else ["-c", str(self.folder / "backbone.yaml")]
        config = self.parser.parse_args([*words, *options, *more])
        resolved = yaml.load(self.parser.dump(config, skip_none=False), yaml.CSafeLoader)
        return Run(resolved, lambda: self.parser.instantiate_classes(config))


@contextmanager
def edited(path: Path, old: str, new: str) -> Iterator[None]:
    """Let a file of this process's own have other content, as it is for a process that starts after an edit."""
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, new, 1))
    forget(path)
    try:
        yield
    finally:
        path.write_text(before)
        forget(path)


@contextmanager
def edited_source(module: str, old: str = "", new: str = "") -> Iterator[None]:
    """Let a module of embedlab have other source, as it is for a process that starts after an edit."""
    path, read = MODULES[f"embedlab.{module}"], Path.read_bytes
    assert old.encode() in read(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda self: _replaced(read(self), old, new) if self == path else read(self))
        forget(path)
        yield
    forget(path)


def _replaced(source: bytes, old: str, new: str) -> bytes:
    return source.replace(old.encode(), new.encode(), 1) if old else source + b"\nONE = 1\n"


def forget(path: Path) -> None:
    for key in [key for key in source_hash._read if key[1] == path]:
        del source_hash._read[key]


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, decoder_folder: Callable[[str], Path], encoder_folder: Path
) -> Iterator[Place]:
    """Return a folder with a user's project, data and a decoder."""
    folder = tmp_path_factory.mktemp("identity")
    project = folder / "own_project"
    (project / "helpers").mkdir(parents=True)
    for name, text in (
        ("__init__", ""),
        ("strategy", OWN_STRATEGY),
        ("pooling", OWN_POOLING),
        ("helpers/__init__", ""),
        ("helpers/first", OWN_HELPER),
    ):
        (project / f"{name}.py").write_text(text)
    (folder / "pairs.csv").write_text(PAIRS)
    (folder / "texts.csv").write_text("text\nBirds sing.\nDogs bark.\n")
    shutil.copytree(decoder_folder("llama"), folder / "decoder")
    shutil.copytree(encoder_folder, folder / "encoder")
    source = {"path": str(folder / "pairs.csv")}
    protocol = {"data": {"train": source, "validation": source, "test": {"own": source}}, "trainer": {"max_epochs": 1}}
    (folder / "protocol.yaml").write_text(f"# what runs share\n{yaml.safe_dump(protocol)}")
    backbone = {"name": str(folder / "decoder")}
    (folder / "backbone.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"backbone": backbone}}}))
    for path in SHIPPED.glob("*.yaml"):
        text = path.read_text().replace(
            "path: stsb, split: train, columns: {text: [sentence1, sentence2]}", "path: TEXTS"
        )
        (folder / path.name).write_text(text.replace("TEXTS", str(folder / "texts.csv")))
    (folder / "own.yaml").write_text("model: {class_path: own_project.strategy.Own}\n")
    for module in pkgutil.iter_modules(strategies.__path__):
        importlib.import_module(f"{strategies.__name__}.{module.name}")
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_argument("-c", "--config", action="config")
    parser.add_argument("--seed_everything", type=int, default=0)
    for name in ("run_dir", "study", "label"):
        parser.add_argument(f"--{name}", type=str | None, default=None)
    parser.add_class_arguments(Trainer, "trainer", instantiate=False)
    parser.add_subclass_arguments(EmbeddingStrategy, "model")
    parser.add_class_arguments(DataModule, "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.chdir(folder)
        yield Place(folder, parser)
    for name in [name for name in sys.modules if name.partition(".")[0] == "own_project"]:
        del sys.modules[name]


# The table --------------------------------------------------------------------------------------------------


@dataclass
class Edit:
    """An edit, and the strategies whose runs it makes other ones.

    Args:
        what: What is edited.
        changed: Strategies whose runs are others then.
        options: Typed after the rest; parsed anew.
        only: Strategies that have such an option.
        config: What the resolved configuration has then, by dotted option.
        file: A file in the user's folder, with old and new text.
        source: A module of embedlab, with old and new text; one line more without.
        version: Of embedlab.
        same_row: Whether the row of the table stays the same although the run does not.
    """

    what: str
    changed: set[str]
    options: tuple[str, ...] = ()
    only: set[str] | None = None
    config: dict[str, Any] | None = None
    file: tuple[str, str, str] | None = None
    source: tuple[str, ...] | None = None
    version: str | None = None
    same_row: bool = False

    def identity(self, place: Place, strategy: str, run: Run) -> Identity:
        if self.options or (self.file is not None and self.file[0].endswith(".yaml")):
            run = place.run(strategy, *self.options)
        elif self.file is not None:
            run = replace(run)
        return run.identity(self.config)

    @contextmanager
    def made(self, folder: Path) -> Iterator[None]:
        if self.file is not None:
            with edited(folder / self.file[0], *self.file[1:]):
                yield
        elif self.source is not None:
            with edited_source(*self.source):
                yield
        elif self.version is not None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(embedlab, "__version__", self.version)
                yield
        else:
            yield


BEST = str(best_dtype()).removeprefix("torch.")
OTHER = {"bfloat16": "float32", "float32": "bfloat16"}[BEST]
LOGGERS = [{"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "elsewhere"}}]
SHOWN = {"enable_progress_bar": True, "enable_model_summary": False, "log_every_n_steps": 3, "profiler": "simple"}
PLACES = {"run_dir": "elsewhere", "study": "another", "label": "renamed", "trainer.default_root_dir": "elsewhere"}
DTYPE = "--model.init_args.backbone.dtype"
BODY = "    return _weighted(states, batch.positions + 1, batch)"

EDITS = [
    Edit("learning rate", FREEZE | CONTRASTIVE, ("--model.init_args.training.learning_rate", "0.5"), FREEZE | CONTRASTIVE),
    Edit("seed", ALL, config={"seed_everything": 7}, same_row=True),
    Edit("dtype: auto, named as what it is", set(), (DTYPE, BEST), WITH_DECODER),
    Edit("dtype: the other one", WITH_DECODER, (DTYPE, OTHER), WITH_DECODER),
    Edit("a data row", ALL, file=("pairs.csv", "Birds sing 3.", "Cats sing 3.")),
    Edit("a text of stage 1", FREEZE, file=("texts.csv", "Dogs", "Cats")),
    Edit("a decoder file", WITH_DECODER, file=("decoder/config.json", "{", "{\n")),
    Edit("source: loss cosent", CONTRASTIVE, source=("losses", "def cosent(", "SCALE = 1\ndef cosent(x=SCALE, *")),
    Edit("source: loss log_variance", FREEZE, source=("losses", "def log_variance(", "def log_variance(x=1, *")),
    Edit("source: pooling weighted_mean", BI | {"pooled_decoder"}, source=("pooling", BODY, f"{BODY} * 2")),
    Edit("source: pooling _weighted, which it uses", BI | {"pooled_decoder", "own"},
         source=("pooling", "weights = weights.float()", "weights = weights.double()")),
    Edit("source: LoRA", {"lora_bi"}, source=("backbone.tuning", "rank: int = 16", "rank: int = 8")),
    Edit("source: strategy freeze", FREEZE, source=("strategies.freeze",)),
    Edit("source: freeze_network", FREEZE, source=("strategies.freeze_network", "nn.GELU", "nn.SiLU")),
    Edit("source: strategy sgpt_bi", {"sgpt_bi"}, source=("strategies.sgpt_bi", "import losses", "import losses as x")),
    Edit("source: contrastive", CONTRASTIVE, source=("strategies.contrastive", "label = ", "labels = label = ")),
    Edit("source: strategy sgpt_cross", {"sgpt_cross"}, source=("strategies.sgpt_cross",)),
    Edit("source: sgpt_prompts", {"sgpt_cross"}, source=("strategies.sgpt_prompts",)),
    Edit("a file of a borrowed model", {"sentence_transformer"},
         file=("encoder/1_Pooling/config.json", "{", "{\n")),
    Edit("path of a borrowed model, written otherwise", set(),
         ("--model.init_args.model", "./encoder/."), {"sentence_transformer"}),
    Edit("source: strategy sentence_transformer", {"sentence_transformer"}, source=("strategies.sentence_transformer",)),
    Edit("source: how it loads a model", {"sentence_transformer"}, source=("strategies.borrowed",)),
    Edit("source: strategy tfidf", {"tfidf"}, source=("strategies.tfidf",)),
    Edit("source: strategy of the user's", {"own"}, file=("own_project/strategy.py", "= mean", "= None")),
    Edit("source: pooling of the user's", {"freeze, own pooling", "own"},
         file=("own_project/pooling.py", "first(states, batch)", "-first(states, batch)")),
    Edit("source: helper that it imports", {"freeze, own pooling", "own"},
         file=("own_project/helpers/first.py", "[:-1]", "[1:]")),
    Edit("source: package of that helper", {"freeze, own pooling", "own"},
         file=("own_project/helpers/__init__.py", "", "ONE = 1\n")),
    Edit("source: a strategy's base", set(), source=("strategies.base",)),
    Edit("source: backbone", set(), source=("backbone.reader",)),
    Edit("comment and layout in source", set(), source=("losses", "def cosent(", "# a comment\ndef  cosent(")),
    Edit("docstring in source of the user's", set(), file=("own_project/pooling.py", "Take the", "Give the")),
    Edit("comment in YAML", set(), file=("protocol.yaml", "# what", "# all that")),
    Edit("devices and precision, written as what they are", set(),
         config={"trainer.devices": "1", "trainer.precision": "32-true"}),
    Edit("precision: another one", ALL, config={"trainer.precision": "bf16-mixed"}),
    Edit("devices: two", ALL, config={"trainer.devices": 2}),
    Edit("clipping", ALL, config={"trainer.gradient_clip_val": 2}),
    Edit("paths, written otherwise", set(), ("--data.train.path", "./pairs.csv"), ALL),
    Edit("path of the decoder, written otherwise", set(), ("--model.init_args.backbone.name", "decoder/."), WITH_DECODER),
    Edit("path of stage 1, written otherwise", set(),
         ("--model.init_args.pretraining.source.path", "./texts.csv"), FREEZE),
    Edit("a limit that leaves all rows", set(), ("--data.train.limit", "10"), ALL),
    Edit("a limit", ALL, ("--data.train.limit", "9"), ALL),
    Edit("query side", ALL, ("--data.validation.query", "second"), ALL),
    Edit("rows to predict", set(), ("--data.predict.path", "texts.csv"), ALL),
    Edit("logger", set(), config={"trainer.logger": LOGGERS}),
    Edit("progress bar, summary, steps between logs", set(), config={f"trainer.{k}": v for k, v in SHOWN.items()}),
    Edit("run_dir, study, label", set(), config=PLACES),
    Edit("version of embedlab", set(), version="99"),
]  # fmt: skip


def test_table(place: Place) -> None:
    """Every edit, against every strategy; the row of the report changes as the run does, but for the seed."""
    runs = {strategy: place.run(strategy) for strategy in STRATEGIES}
    before = {strategy: run.identity() for strategy, run in runs.items()}
    assert len({own.run for own in before.values()}) == len(STRATEGIES)
    lines = [["edit", *STRATEGIES], ["---"] * (1 + len(STRATEGIES))]
    wrong = []
    for edit in EDITS:
        cells = []
        with edit.made(place.folder):
            for strategy, run in runs.items():
                if edit.only is not None and strategy not in edit.only:
                    cells.append("")
                    continue
                now, old = edit.identity(place, strategy, run), before[strategy]
                other, row = now.run != old.run, now.settings != old.settings
                cells.append(
                    {(True, True): "another", (True, False): "another seed", (False, False): "same"}[other, row]
                )
                expected = strategy in edit.changed
                if (other, row) != (expected, expected and not edit.same_row):
                    wrong.append((edit.what, strategy, other, row))
        lines.append([edit.what, *cells])
    print("", *(f"| {' | '.join(line)} |" for line in lines), sep="\n")  # for `-s`
    assert not wrong
    assert {strategy: run.identity() for strategy, run in runs.items()} == before


# What configurations name -----------------------------------------------------------------------------------


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for own in value:
            yield from strings(own)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_all_that_shipped_configurations_name_is_decided(place: Place, path: Path) -> None:
    """Whether the file names it, or it is a default of what the file names."""
    words = ["-c", str(path), *([] if path.stem in WITHOUT_DECODER else ["-c", str(place.folder / "backbone.yaml")])]
    resolved = yaml.safe_load(place.parser.dump(place.parser.parse_args(words), skip_none=False))
    named = {own for own in strings(resolved["model"]) if own.startswith("embedlab.")}
    assert resolved["model"]["class_path"] in named
    assert named >= {own for own in strings(yaml.safe_load(path.read_text())) if own.startswith("embedlab.")}
    decided = sources_of(strings(resolved))
    for own in named:
        module, _, name = own.rpartition(".")
        assert {module, f"{module}:{name}"} & set(decided), own


NO_METHODS = """stsb;pairs.csv;torch.nn.SiLU;torch.nn.functional.gelu;os.path.join;numpy.tanh;own.;.;;a b.c;Ein Vögel.;
embedlab.backbone.Backbone;embedlab.losses;e.g. 1.5;embedlab.strategies.base.Embedder"""


@pytest.mark.parametrize("string", NO_METHODS.split(";"))
def test_what_is_no_name_of_a_method_counts_as_a_string_only(string: str, caplog: pytest.LogCaptureFixture) -> None:
    assert sources_of([string]) == {}
    assert not caplog.records


CALLBACK = [{"class_path": "lightning.pytorch.callbacks.Timer", "init_args": {"duration": {"words": "words.txt"}}}]


@pytest.mark.parametrize(
    ("options", "changes", "file"),
    [
        (("--model.init_args.words", "words.txt"), {}, "words.txt"),
        (("--model.init_args.words", "[no file, words.txt]"), {}, "words.txt"),
        (("--model.init_args.more.path", "more.csv"), {}, "more.csv"),
        ((), {"trainer.callbacks": CALLBACK}, "words.txt"),
        ((), {"ckpt_path": "words.txt"}, "words.txt"),
    ],
    ids=["option", "list", "source", "callback", "ckpt_path"],
)
def test_a_file_that_an_option_names_counts_by_its_content(
    place: Place, options: tuple[str, ...], changes: dict[str, Any], file: str
) -> None:
    (place.folder / file).write_text("one\n")
    run = place.run("own", *options)
    before = run.identity(changes)
    assert before.run != place.run("own").identity().run
    (place.folder / file).write_text("another\n")
    assert run.identity(changes).run != before.run
    (place.folder / file).write_text("one\n")
    assert run.identity(changes) == before
    elsewhere = yaml.safe_load(yaml.safe_dump([run.config, changes]).replace(file, str(place.folder / file)))
    assert replace(run, config=elsewhere[0]).identity(elsewhere[1]) == before


def test_a_text_that_happens_to_be_the_name_of_a_file_is_a_text(place: Place) -> None:
    """A path has a folder or a suffix; a checkpoint is a file whatever its name."""
    runs = {text: place.run("own", "--model.init_args.words", text) for text in ("G", "./G", "[G, ./G]")}
    before, resumed = {text: run.identity() for text, run in runs.items()}, runs["G"].identity({"ckpt_path": "G"})
    (place.folder / "G").write_text("one\n")
    try:
        assert {text for text, run in runs.items() if run.identity() != before[text]} == {"./G", "[G, ./G]"}
        assert runs["G"].identity({"ckpt_path": "G"}) != resumed
    finally:
        (place.folder / "G").unlink()


def test_a_whole_number_to_clip_at_is_that_number(place: Place) -> None:
    run = place.run("tfidf")
    assert run.identity({"trainer.gradient_clip_val": 2}) == run.identity({"trainer.gradient_clip_val": 2.0})
    both = [run.identity({"trainer.limit_val_batches": own}).run for own in (1, 1.0)]
    assert both[0] != both[1], "one batch, and all of them"


def test_a_second_decoder_counts_as_the_first_does(place: Place) -> None:
    shutil.copytree(place.folder / "decoder", place.folder / "teacher")
    words = ("--model.init_args.teacher.name", "teacher", "--model.init_args.teacher.dtype")
    runs = {dtype: place.run("own", *words, dtype) for dtype in ("auto", BEST, OTHER)}
    before = {dtype: run.identity() for dtype, run in runs.items()}
    assert before["auto"] == before[BEST]
    assert before[OTHER].run != before[BEST].run
    assert place.run("own", "--model.init_args.teacher.name", "./teacher").identity() == before["auto"]
    with edited(place.folder / "teacher" / "config.json", "{", "{\n"):
        assert runs["auto"].identity().run != before["auto"].run


@pytest.mark.parametrize("text", ["", "a" * 5000, "nul\0", "~nobody-of-that-name/x", "own_project"])
def test_what_names_no_file_counts_as_a_text(place: Place, text: str) -> None:
    run = place.run("own")
    changed = {**run.config["model"], "init_args": {**run.config["model"]["init_args"], "words": text}}
    assert run.identity({"model": changed}).run != run.identity().run


def test_what_has_no_source_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    module = type(sys)("made_by_hand")
    exec("def take(states, batch): ...", vars(module))
    monkeypatch.setitem(sys.modules, "made_by_hand", module)
    with caplog.at_level(logging.WARNING):
        assert sources_of(["made_by_hand.take"]) == {"made_by_hand.take": repr(module.take)}
    assert "made_by_hand.take cannot be told by its source" in caplog.text


def test_a_thing_that_is_handed_on_counts_by_both_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "handing_on.py").write_text(
        "import functools\nfrom embedlab import losses\nfrom embedlab.pooling import mean\n"
        "part = functools.partial(mean)\nloss = losses.cosent\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("handing_on")
    expected = {"handing_on", "embedlab.pooling:mean", "embedlab.losses:cosent"}
    assert set(sources_of(["handing_on.part"])) == set(sources_of(["handing_on.mean"])) == expected
    monkeypatch.delitem(sys.modules, "handing_on")


def test_the_packages_around_a_module_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing a module runs them first."""
    (tmp_path / "around" / "without_init").mkdir(parents=True)
    (tmp_path / "around" / "__init__.py").write_text("ONE = 1\n")
    (tmp_path / "around" / "without_init" / "inside.py").write_text("def take(): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("around.without_init.inside")
    assert set(sources_of(["around.without_init.inside.take"])) == {"around", "around.without_init.inside"}
    for name in [name for name in sys.modules if name.partition(".")[0] == "around"]:
        monkeypatch.delitem(sys.modules, name)


def test_an_import_that_cannot_be_read_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late_import.py").write_text("def take():\n    import broken_one, missing_one, late_import\n")
    (tmp_path / "broken_one.py").write_text("def (")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("late_import")
    assert set(sources_of(["late_import.take"])) == {"late_import"}
    monkeypatch.delitem(sys.modules, "late_import")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder of packages with `away_method.py` to be written, and forget what tests import from there."""
    before = set(sys.modules)
    (tmp_path / "here").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def reached(elsewhere: Path, source: str, *more: str) -> set[str]:
    (elsewhere / "here" / "away_method.py").write_text(f"{source}\ndef take(): ...\n")
    importlib.invalidate_caches()
    importlib.import_module("away_method")
    return set(sources_of(["away_method.take", *more])) - {"away_method"}


@pytest.mark.parametrize("late", [False, True], ids=["at import", "when called"])
def test_imports_are_followed_wherever_python_finds_them(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """On PYTHONPATH, in an editable install, through links: editing any of them makes another run."""
    for place, name in (("path", "away_path"), ("editable", "away_editable"), ("linked", "away_target")):
        (elsewhere / place / name).mkdir(parents=True)
        (elsewhere / place / name / "__init__.py").write_text("")
        (elsewhere / place / name / "inside.py").write_text("from . import beside\n")
        (elsewhere / place / name / "beside.py").write_text("ONE = 1\n")
    (elsewhere / "here" / "away_link").symlink_to(elsewhere / "linked" / "away_target")
    (elsewhere / "linked" / "single.py").write_text("import away_path.beside\n")
    (elsewhere / "here" / "away_single.py").symlink_to(elsewhere / "linked" / "single.py")
    (elsewhere / "site-packages").mkdir()
    (elsewhere / "site-packages" / "away_installed.py").write_text("import away_path.inside\n")
    for place in ("path", "site-packages"):
        monkeypatch.syspath_prepend(str(elsewhere / place))

    class Editable:
        """As setuptools installs a project that stays where it is."""

        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
            init = elsewhere / "editable" / name / "__init__.py"
            if name != "away_editable":
                return None
            return importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(init.parent)])

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Editable])
    lines = ["import away_path.inside, away_single, away_installed, numpy", "from away_editable.inside import beside"]
    lines += ["from away_link import inside"]
    source = "def late():\n    " + "\n    ".join(lines) if late else "\n".join(lines)
    packages = {f"away_{own}{part}" for own in ("path", "editable", "link") for part in ("", ".inside", ".beside")}
    assert reached(elsewhere, source) == {*packages, "away_single"}


@pytest.mark.parametrize(
    ("call", "found"),
    [
        ("importlib.import_module('variants.one')", {"", ".one"}),
        ("import_module('.one', 'variants')", {"", ".one"}),
        ("__import__('variants')", {""}),
        ("import_module(f'variants.{name}')", {"", ".one", ".two", ".deep", ".deep.three"}),
        ("import_module('variants.t' + name)", {"", ".two"}),
        ("import_module('.deep.' + name, package='variants')", {"", ".deep", ".deep.three"}),
        ("other('variants.one')", set()),
        ("load('variants.one')", {"", ".one"}),
        ("il.import_module('variants.one')", {"", ".one"}),
    ],
)
def test_a_module_that_is_imported_by_a_call_counts(elsewhere: Path, call: str, found: set[str]) -> None:
    (elsewhere / "here" / "variants" / "deep").mkdir(parents=True)
    for name in ("__init__", "one", "two", "deep/__init__", "deep/three"):
        (elsewhere / "here" / "variants" / f"{name}.py").write_text("")
    imports = "import importlib, importlib as il\nfrom importlib import import_module, import_module as load"
    source = f"{imports}\ndef late(name, other):\n    {call}"
    assert reached(elsewhere, source) == {f"variants{own}" for own in found}


NETWORK = {
    "strategies.whitening",
    "strategies.freeze_encoders",
    "strategies.freeze_network",
}  # each imports the one before


@pytest.mark.parametrize(
    ("imports", "use", "found"),
    [
        ("import embedlab", "embedlab.losses.mse", {"losses:mse"}),
        ("import embedlab, embedlab.losses", "embedlab.losses.mse()", {"losses:mse"}),
        ("import embedlab.losses as own", "own.mse", {"losses:mse"}),
        ("import embedlab.losses", "0", {"losses"}),
        ("from embedlab.losses import *", "0", {"losses"}),
        ("from embedlab import backbone", "backbone.tuning.Frozen()", {"backbone.tuning:Frozen"}),
        ("from embedlab import strategies", "strategies.freeze_network.Two", NETWORK),
        ("import embedlab", "embedlab.strategies.freeze_network", NETWORK),
        ("from embedlab import losses", "losses.mse() + getattr(losses, 'x')()", {"losses", "losses:mse"}),
        ("import embedlab", "[embedlab.losses]", {"losses"}),
        ("from embedlab import losses", "lambda losses=losses.mse: (losses, losses.cosent)", {"losses:mse"}),
        ("import embedlab, embedlab.data", "embedlab.data.Source, embedlab.strategies.base.Embedder", set()),
    ],
)
def test_what_is_reached_through_a_package_counts(elsewhere: Path, imports: str, use: str, found: set[str]) -> None:
    expected = {f"embedlab.{own}" for own in found}
    assert reached(elsewhere, f"{imports}\ndef late(): return {use}") == expected
    if "*" not in imports:
        del sys.modules["away_method"]
        source_hash._read.clear()
        assert reached(elsewhere, f"def late():\n    {imports}\n    return {use}") == expected


def test_a_module_of_an_own_package_counts_where_only_its_use_tells(elsewhere: Path) -> None:
    (elsewhere / "here" / "enclosing").mkdir()
    for name in ("__init__", "one", "two"):
        (elsewhere / "here" / "enclosing" / f"{name}.py").write_text("")
    assert reached(elsewhere, "import enclosing\ndef late(): return enclosing.one.first") == {
        "enclosing",
        "enclosing.one",
    }


def test_an_own_file_named_as_a_standard_module_counts(elsewhere: Path) -> None:
    """If Python finds it first."""
    for name in ("tabnanny", "json"):
        (elsewhere / "here" / f"{name}.py").write_text("def take(): ...\n")
    assert reached(elsewhere, "import tabnanny, json, turtledemo, sys") == {"tabnanny"}
    importlib.import_module("tabnanny")
    assert set(sources_of(["tabnanny.take", "json.loads", "sys.exit"])) == {"tabnanny"}


def test_calls_may_name_the_package_they_stand_in(elsewhere: Path) -> None:
    (elsewhere / "here" / "whole").mkdir()
    late = "from importlib import import_module\ndef late(name): import_module("
    for name, text in (
        ("__init__", f"{late}'.a', __package__)"),
        ("a", f"{late}f'{{__package__}}.b{{name}}')"),
        ("b1", ""),
    ):
        (elsewhere / "here" / "whole" / f"{name}.py").write_text(text)
    assert reached(elsewhere, "import whole") == {"whole", "whole.a", "whole.b1"}


def test_a_name_that_is_made_up_is_told(elsewhere: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = "from importlib import import_module\ndef late(name): import_module(name)"
    (elsewhere / "here" / "away_chosen.py").write_text("")
    others = ("no file", "pairs.csv", "numpy", "embedlab.pooling", "x" * 300)
    assert reached(elsewhere, source, "away_chosen", *others) == {"away_chosen"}
    assert not caplog.records
    assert reached(elsewhere, source, *others) == set()
    assert "away_method imports a module by a name that it makes up" in caplog.text


def test_what_was_loaded_counts_not_what_the_file_became(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study goes on with the code it began with, whoever edits a file meanwhile."""
    path = tmp_path / "edited_later.py"
    path.write_text("def take(): return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = importlib.import_module("edited_later")
    before = sources_of(["edited_later.take"])
    path.write_text("def take(): return 2 + 0\n")
    assert sources_of(["edited_later.take"]) == before
    importlib.reload(module)
    assert sources_of(["edited_later.take"]) != before
    monkeypatch.delitem(sys.modules, "edited_later")


WITH_LAMBDA = """
from collections.abc import Callable
from torch import Tensor
from embedlab.strategies.base import Embedder


class WithLambda(Embedder):
    def __init__(self, scale: Callable[[Tensor], Tensor] = lambda x: 2 * x) -> None:
        super().__init__()
        self.scale = scale

    def embed(self, texts, role=None): ...
"""


@pytest.mark.filterwarnings("ignore:(?s).*Unable to serialize instance")
def test_a_default_without_a_name_counts_by_the_source_it_is_written_in(place: Place) -> None:
    """The parser writes its address, which is another one in every process."""
    path = place.folder / "with_lambda.py"
    path.write_text(WITH_LAMBDA)
    module = importlib.import_module("with_lambda")
    words = ["-c", str(place.folder / "protocol.yaml"), "--model", "with_lambda.WithLambda"]
    parsed = place.parser.parse_args(words)
    run = Run(yaml.safe_load(place.parser.dump(parsed)), lambda: place.parser.instantiate_classes(parsed))
    written = run.config["model"]["init_args"]["scale"]
    assert " at 0x" in written
    before = run.identity()
    elsewhere = {**run.config["model"], "init_args": {"scale": written.replace(" at 0x", " at 0xff")}}
    assert run.identity({"model": elsewhere}) == before
    path.write_text(WITH_LAMBDA.replace("2 * x", "x + 2"))
    importlib.reload(module)
    assert run.identity().run != before.run
    del sys.modules["with_lambda"]


# What is recorded beside it ---------------------------------------------------------------------------------


def test_every_module_is_decided_recorded_or_without_torch() -> None:
    recorded = {f"embedlab.{name}" for name in shared_code()}
    assert all(room(name) in ROOMS for name in recorded)
    assert not {name for name in MODULES if is_of_a_method(name)} & recorded
    # What uses a finished run changes none of its numbers: no run imports it.
    users = {name for name in MODULES if room(name) in ("analysis", "use", "export")}
    assert not users & set(reachable("embedlab.training.cli", True))
    others = [name for name in MODULES if name not in recorded | users and not is_of_a_method(name)]
    assert not [name for name in others if heavy(name)]


def test_what_the_frame_of_strategies_imports_of_them_is_of_it() -> None:
    """Imports of the frame are not followed, so a module that only it uses would be neither decided nor recorded."""
    used = {own for name in FRAME for own in reachable(name, False) if own.startswith("embedlab.strategies.")}
    assert used <= set(FRAME)


def test_the_rest_of_the_code_is_recorded_and_compared(place: Place) -> None:
    run = place.run("tfidf")
    before = run.identity()
    assert before.code == shared_code()
    assert older_code({"code": before.code}) == []
    with edited_source("packing", "import torch\n", "import torch\n# a comment\n"):
        assert older_code({"code": before.code}) == []
    with (
        edited_source("packing"),
        edited_source("backbone.reader"),
    ):
        assert older_code({"code": before.code}) == ["backbone.reader", "packing"]
        after = run.identity()
    assert (after.run, after.settings) == (before.run, before.settings)
    assert after.code != before.code


# Resuming ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:LightningCLI's args", "ignore:Starting from v1.9.0")
def test_a_run_resumes_with_another_logger_but_not_with_another_loss(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class KilledError(Exception):
        pass

    @functools.wraps(Trainer.fit)  # the parser takes the options of `fit` from its signature
    def fit(*_: object, **__: object) -> None:
        raise KilledError

    monkeypatch.setattr(Trainer, "fit", fit)
    monkeypatch.chdir(tmp_path)
    words = [
        "fit",
        "--run_dir",
        "r",
        *(f"-c={place.folder / name}.yaml" for name in ("protocol", "sgpt_bi", "backbone")),
    ]
    with pytest.raises(KilledError):
        cli.main(words)
    first = (tmp_path / "r" / runs.IDENTITY).read_text()
    (tmp_path / "r" / runs.LAST).parent.mkdir(exist_ok=True)
    (tmp_path / "r" / runs.LAST).touch()  # otherwise nothing would be lost, and the folder be taken over
    with edited_source("losses", "def cosent(", "def cosent(x=1, *"):
        assert cli.main(words) == 2
    assert "holds an unfinished run with other settings" in capsys.readouterr().err
    with pytest.raises(KilledError):
        cli.main([*words, "--trainer.logger", "false", "--trainer.log_every_n_steps", "3"])
    assert (tmp_path / "r" / runs.IDENTITY).read_text() == first


@pytest.mark.parametrize("kept", [True, False], ids=["goes on", "begins anew"])
@pytest.mark.filterwarnings("ignore:LightningCLI's args", "ignore:Starting from v1.9.0", "ignore:The .* does not have")
def test_a_resumed_run_tells_the_code_and_versions_of_its_first_part(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """So that it counts as made by older code; what left nothing to go on with made nothing."""

    @functools.wraps(Trainer.validate)
    def killed(*_: object, **__: object) -> None:
        raise KeyError

    monkeypatch.chdir(tmp_path)
    words = ["fit", "--run_dir=r", *(f"-c={place.folder / name}.yaml" for name in ("protocol", "tfidf"))]
    with edited_source("packing"), pytest.MonkeyPatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(Trainer, "validate", killed)
        patch.setattr(torch, "__version__", "0")
        cli.main(words)
    if kept:
        (tmp_path / "r" / runs.CHECKPOINTS).mkdir()
        (tmp_path / "r" / runs.LAST).touch()
    assert cli.main(words) == 0
    result = runs.read_result(tmp_path / "r")
    assert result is not None
    assert older_code(result) == (["packing"] if kept else [])
    assert result["versions"]["torch"] == ("0" if kept else torch.__version__)
    told = [own for own in result["notes"] if own.startswith("resumed")]
    later = ["resumed under other code: packing", f"resumed under other versions: torch {torch.__version__}"]
    assert told == (later if kept else [])
