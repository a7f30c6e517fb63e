"""Every shipped YAML is what it claims to be, and starts."""

from __future__ import annotations

import csv
import inspect
import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from embedlab import cli, configs
from embedlab.data import Source
from embedlab.errors import UserError
from embedlab.strategies.base import EmbeddingStrategy
from embedlab.study import compare
from embedlab.study.spec import read_study
from tests import processes
from tests.strategies.test_contract import found
from tests.studies import Judge

CONFIGS = Path(__file__).parents[1] / "configs"
STRATEGIES = sorted((CONFIGS / "strategies").glob("*.yaml"))
BACKBONES = sorted((CONFIGS / "backbones").glob("*.yaml"))
WITHOUT_DECODER = ("sentence_transformer", "tfidf")
STUDIES = sorted((CONFIGS / "compare").rglob("*.yaml"))
# A tiny random decoder of the same class stands in for each that would be fetched.
STANDS_FOR = {
    **{"smollm2-135m": "llama", "gpt2-medium": "gpt2", "qwen2-0.5b": "qwen2", "gpt-j-6b": "gptj"},
    **{f"gpt-neo-{size}": "gpt_neo" for size in ("125m", "1.3b", "2.7b")},
    **{f"bloom-{size}": "bloom" for size in ("1b7", "7b1")},
}


def test_every_strategy_has_a_configuration_and_every_configuration_a_strategy() -> None:
    named = {yaml.safe_load(path.read_text())["model"]["class_path"].rpartition(".")[2] for path in STRATEGIES}
    assert named == {kind.__name__ for kind in found()}


# What a strategy's file may lay over the protocol: how long it learns, never on what or how it is judged.
SCHEDULE = {"trainer": {"max_epochs", "check_val_every_n_epoch"}, "data": {"batch_size"}}


@pytest.mark.parametrize("path", STRATEGIES, ids=lambda p: p.stem)
def test_a_strategy_file_holds_a_model_and_at_most_a_schedule(path: Path) -> None:
    text = path.read_text()
    content = yaml.safe_load(text)
    del content["model"]
    for section, options in content.items():
        assert set(options) <= SCHEDULE[section]
    head = text.split("model:")[0]
    assert ("# Schedule:" in head) == bool(content), "a schedule of its own is declared in the first lines"


@pytest.mark.parametrize("path", STRATEGIES, ids=lambda p: p.stem)
def test_a_strategy_file_tells_its_story(path: Path) -> None:
    text = path.read_text()
    head = text.split("model:")[0]
    assert re.search(r"\b(19|20)\d\d\b", head.splitlines()[0]), "the citation comes first"
    for key in ("Run:", "Cost:", "Expect:"):
        assert f"# {key}" in head
    assert ("# Paper:" in head) == ("# Ours:" in head), "what differs stands beside what it differs from"
    commands = re.findall(r"embedlab (?:fit|compare) .*", head)
    assert re.findall(r"Run: +(.*)", head) == commands[:1]
    for command in commands:
        _, kind, *words = command.split()
        for word in words if kind == "compare" else [word for word in words if word != "-c"]:
            assert configs.find(word).parent.parent in (CONFIGS, CONFIGS.parent), command
    expected = " ".join(head.partition("# Expect: ")[2].replace("#", " ").split())
    command = re.search(r"embedlab (fit|compare) .*", expected)
    assert expected.startswith("not yet run") != bool(command), "a number comes from a run that can be repeated"


@pytest.mark.parametrize("path", STRATEGIES, ids=lambda p: p.stem)
def test_a_strategy_file_declares_what_differs_from_the_paper(
    path: Path, decoder_folder: Callable[[str], Path], request: pytest.FixtureRequest
) -> None:
    """Its run notes every such argument; each of them is named in the first lines."""
    text = path.read_text()
    model = yaml.safe_load(text)["model"]
    if path.stem == "sentence_transformer":
        model["init_args"] = {"model": str(request.getfixturevalue("encoder_folder"))}
    elif path.stem != "tfidf":
        backbone = {"name": str(decoder_folder("llama")), "dtype": "float32"}
        model["init_args"] = {**model.get("init_args", {}), "backbone": backbone}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(EmbeddingStrategy, "model")
    strategy = parser.instantiate_classes(parser.parse_object({"model": model})).model
    strategy.configure_model()
    head = text.split("model:")[0]
    ours = " ".join(head.partition("# Ours:")[2].partition("# Run:")[0].replace("#", " ").split())
    noted = re.findall(r"differs from the paper: ([\w.]+) \S+ instead of", "\n".join(strategy.notes))
    assert noted or strategy.paper == {}
    for argument in noted:
        assert all(f"`{part}`" in ours for part in argument.split(".")[:2]) or f"`{argument}`" in ours, argument


@pytest.mark.parametrize("path", BACKBONES, ids=lambda p: p.stem)
def test_a_backbone_is_pinned(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    backbone = content["model"]["init_args"].pop("backbone")
    assert content == {"model": {"init_args": {}}}
    if "/" in backbone["name"]:
        said = "No commit is named, as none was looked up" in path.read_text()
        assert said == ("revision" not in backbone)
        assert said or re.fullmatch(r"[0-9a-f]{40}", backbone["revision"])


def test_nothing_is_selected_by_test_data() -> None:
    from embedlab.data import datamodule

    assert datamodule.DataModule(validation={"path": "stsb", "split": "validation"}).monitor == "val/spearman"  # type: ignore[arg-type]
    protocol = yaml.safe_load((CONFIGS / "protocol.yaml").read_text())
    assert protocol["data"]["validation"]["split"] == "validation"
    original = CONFIGS / "protocol_original.yaml"
    assert "diagnostic, not for comparison" in configs.first_line(original)
    diagnostic = yaml.safe_load(original.read_text())
    assert diagnostic["data"].pop("validation") == {"path": "stsb", "split": "test"}
    assert protocol["data"].pop("validation") == {"path": "stsb", "split": "validation"}
    assert diagnostic["data"].pop("select_by") == "pearson"
    assert diagnostic == protocol, "it differs in nothing else"
    for path in STUDIES:
        uses = yaml.safe_load(path.read_text())["protocol"] == "protocol_original"
        assert uses == ("diagnostic" in configs.first_line(path)), path
    assert "test/" not in inspect.getsource(datamodule.DataModule.monitor.fget)


# What stands in for data that would be fetched.
AT_HAND = {
    "stsb_nli": ["data.train={path: stsb, limit: 200}"],
    **{
        name: [
            "data.train={path: stsb, limit: 200}",
            "model.backbone.name=smollm2-135m",
            "model.backbone.revision=null",
        ]
        for name in ("sgpt_nli", "sgpt_msmarco")
    },
    **{name: ["model.backbone.revision=null"] for name in ("freeze_qwen2", "c14_gpt2", "c14_qwen2")},
}


# By default the README's commands plan these two, every strategy of them.
SHOWN = {"demo", "stsb"}
# Of the many studies of FREEZE's claims, by default one is planned.
CLAIMS = {own.stem for own in STUDIES if "freeze" in f"{own.parent.name}/{own.stem}"} - {"freeze_original"}


@pytest.mark.parametrize(
    "path",
    [pytest.param(own, id=own.stem, marks=pytest.mark.slow if own.stem in SHOWN | CLAIMS else ()) for own in STUDIES],
)
def test_a_study_can_be_planned(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], decoder_folder: Callable[[str], Path]
) -> None:
    arguments = [str(path), "--dry-run", "--runs", str(tmp_path), *AT_HAND.get(path.stem, [])]
    if "qwen2" in path.stem or "gpt2" in path.stem:  # the others need blocks and a width that no tiny decoder has
        arguments.append(f"model.backbone.name={decoder_folder('llama')}")
    assert compare.main(arguments, server=lambda: nullcontext(Judge(tmp_path))) == 0
    out = capsys.readouterr().out
    content = yaml.safe_load(path.read_text())
    assert all(f"{label} seed" in out for label in content["strategies"])


def launch(strategy: Path, backbone: Path, place: Path, decoder: Path) -> dict[str, object]:
    """Run a configuration for one batch."""
    table = place / "pairs.tsv"
    rows = [f"A man plays {i}.\tSomebody plays {i * i}.\t{i % 6}" for i in range(12)]
    table.write_text("sentence1\tsentence2\tscore\n" + "\n".join(rows) + "\n")
    source = json.dumps({"path": str(table), "split": "train", "score_range": [0, 5]})
    words = ["fit", "-c", str(CONFIGS / "protocol.yaml"), "-c", str(strategy)]
    needs_decoder = strategy.stem not in WITHOUT_DECODER
    words += ["-c", str(backbone)] if needs_decoder else []
    words += ["--run_dir", str(place / "run"), "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    words += [f"--data.train={source}", f"--data.validation={source}", f'--data.test={{"own": {source}}}']
    words += ["--data.batch_size", "4", "--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"]
    words += ["--trainer.limit_train_batches", "1"]
    if needs_decoder:
        words += ["--model.backbone.name", str(decoder), "--model.backbone.revision", "null"]
    if strategy.stem == "sentence_transformer":
        words += ["--model.model", str(decoder), "--model.revision", "null"]
    if strategy.stem.startswith("freeze"):
        words += ["--model.pretraining.source.limit", "8", "--model.pretraining.epochs", "1"]
    processes.run(place, words)
    result: dict[str, object] = json.loads((place / "run" / "result.json").read_text())
    return result


ALL = [(s, b) for s in STRATEGIES for b in BACKBONES]
# By default each file is launched once, with the decoders taking turns; all combinations are `slow`.
DECODING = [path for path in STRATEGIES if path.stem not in WITHOUT_DECODER]
ROTATED = {
    (DECODING[i % len(DECODING)], BACKBONES[i % len(BACKBONES)]) for i in range(max(len(DECODING), len(BACKBONES)))
}


@pytest.mark.parametrize(
    ("strategy", "backbone"),
    [
        pytest.param(s, b, id=f"{s.stem}-{b.stem}", marks=() if (s, b) in ROTATED else pytest.mark.slow)
        for s, b in ALL
        if s.stem not in WITHOUT_DECODER
    ]
    + [pytest.param(CONFIGS / "strategies" / f"{own}.yaml", BACKBONES[0], id=own) for own in WITHOUT_DECODER],
)
def test_is_launched_for_one_batch(
    strategy: Path,
    backbone: Path,
    tmp_path: Path,
    decoder_folder: Callable[[str], Path],
    request: pytest.FixtureRequest,
) -> None:
    borrows = strategy.stem == "sentence_transformer"
    model = request.getfixturevalue("encoder_folder") if borrows else decoder_folder(STANDS_FOR[backbone.stem])
    result = launch(strategy, backbone, tmp_path, model)
    assert set(result["metrics"]) == {"validation", "test/own"}


def test_every_overlay_is_launched_by_default() -> None:
    assert {b for _, b in ROTATED} == set(BACKBONES)


def test_the_default_source_is_the_real_benchmark() -> None:
    protocol = yaml.safe_load((CONFIGS / "protocol.yaml").read_text())["data"]
    sizes = [
        len(Source(**source).read()) for source in (protocol["train"], protocol["validation"], protocol["test"]["stsb"])
    ]
    assert sizes == [5749, 1500, 1379]


def test_the_other_protocol_differs_in_its_test_sets_only() -> None:
    own, other = (yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("protocol", "protocol_sts"))
    more = {name: source for name, source in other["data"]["test"].items() if name != "stsb"}
    assert list(more) == ["sts12", "sts13", "sts14", "sts15", "sts16", "sick-r"]
    assert all(re.fullmatch(r"[0-9a-f]{40}", source["revision"]) for source in more.values())
    other["data"]["test"] = {"stsb": other["data"]["test"]["stsb"]}
    assert other == own


def test_print_config_shows_everything_and_runs_nothing(tmp_path: Path) -> None:
    words = [
        "fit",
        "-c",
        str(CONFIGS / "protocol.yaml"),
        "-c",
        str(CONFIGS / "strategies" / "lora_bi.yaml"),
        "--print_config",
    ]
    before = set(tmp_path.iterdir())
    shown = yaml.safe_load(processes.run(tmp_path, words).stdout)
    assert shown["model"]["init_args"]["rank"] == 16
    assert shown["model"]["init_args"]["backbone"]["name"] == "smollm2-135m"
    assert {own for own in tmp_path.iterdir() if not own.name.startswith(processes.OUTPUT)} == before


# By name ----------------------------------------------------------------------------------------------------


def test_everything_that_ships_has_a_name_and_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    names = configs.names()
    assert {configs.find(name) for name in names} == {
        *STRATEGIES,
        *BACKBONES,
        *STUDIES,
        *CONFIGS.glob("protocol*.yaml"),
    }
    assert cli.main(["configs"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == names
    assert all(len(line) <= 112 and not line.endswith(".") for line in lines.values()), "a phrase of one line"


@pytest.mark.parametrize("word", ["freeze", "freeze.yaml", "strategies/freeze", "configs/strategies/freeze.yaml"])
def test_is_found_by_name(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert configs.find(word) == CONFIGS / "strategies" / "freeze.yaml"
    own = tmp_path / word
    own.parent.mkdir(parents=True, exist_ok=True)
    own.mkdir()
    assert configs.find(word) == CONFIGS / "strategies" / "freeze.yaml", "a folder is no configuration"
    own.rmdir()
    own.write_text("")
    assert configs.find(word) == Path(word), "a file of the user's goes first"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("strategies/frezee", "did you mean strategies/freeze."),
        ("xyz", "xyz must be a YAML file or the name of one that ships, but is neither; `embedlab configs`"),
        ("own.yml", "own.yml does not exist; did you mean own.yaml."),
        ("folder", "folder must be a file, got a folder; name a file in it."),
        ("a" * 300, "must be a YAML file or the name of one that ships"),
        ("a\0b", "must be a YAML file or the name of one that ships"),
        (
            "twin",
            "twin must be the name of one shipped configuration, but fits backbones/twin and strategies/twin; write one.",
        ),
    ],
)
def test_a_name_that_leads_nowhere(word: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("strategies/freeze", "strategies/twin", "backbones/twin"):
        (tmp_path / "shipped" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "shipped" / f"{name}.yaml").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "own.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(configs, "folder", lambda: tmp_path / "shipped")
    with pytest.raises(UserError) as caught:
        configs.find(word)
    assert message in str(caught.value)


def test_one_is_printed_to_start_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even into a file of its own name, which the shell has made by then; and a copy of a study runs anywhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.yaml").touch()
    assert cli.main(["configs", "demo.yaml"]) == 0
    printed = capsys.readouterr().out
    assert printed == (CONFIGS / "compare" / "demo.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(printed)
    study = read_study(Path("mine.yaml"))
    assert {own.config.parent for own in study.strategies} == {CONFIGS / "strategies"}
    assert (study.protocol, study.backbone) == (CONFIGS / "protocol.yaml", CONFIGS / "backbones" / "smollm2-135m.yaml")
    assert cli.main(["configs", "mine.yaml"]) == 2
    assert "`NAME` must be what ships, got 'mine.yaml'; `embedlab configs` lists" in capsys.readouterr().err


def test_a_study_names_its_own_files_and_what_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "studies"
    place.mkdir()
    (place / "mine.yaml").write_text("model: {class_path: embedlab.strategies.tfidf.Tfidf}\n")
    lines = "{plain: strategies/tfidf, mine: mine.yaml, far: ../far.yaml}"
    (tmp_path / "far.yaml").write_text((place / "mine.yaml").read_text())
    (place / "study.yaml").write_text(f"protocol: protocol\nstrategies: {lines}\n")
    assert [own.config for own in read_study(Path("studies/study.yaml")).strategies] == [
        CONFIGS / "strategies" / "tfidf.yaml",
        Path("studies/mine.yaml"),
        Path("far.yaml"),
    ]
    processes.serve(monkeypatch)
    assert cli.main(["compare", "studies/study.yaml", "--dry-run"]) == 0
    assert "3 to run" in capsys.readouterr().out


def test_options_take_names_in_every_form() -> None:
    file = str(CONFIGS / "protocol.yaml")
    words = ["-c", "protocol", "--config=protocol", "--model.backbone.name", "protocol", "--config", "protocol"]
    expected = ["-c", file, f"--config={file}", "--model.backbone.name", "protocol", "--config", file]
    words, expected = [*words, "-cprotocol", "-c=protocol", "-c"], [*expected, f"-c={file}", f"-c={file}", "-c"]
    assert configs.with_files(words) == expected
    assert configs.with_files(["-c", "--print_config"]) == ["-c", "--print_config"], "for the parser to refuse"


@pytest.mark.parametrize(
    ("study", "architecture"),
    [pytest.param("sgpt_nli", "gpt_neo", marks=pytest.mark.slow), ("sgpt_msmarco", "bloom")],
)
def test_a_published_training_is_launched(
    study: str,
    architecture: str,
    tmp_path: Path,
    decoder_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On 16 triplets in place of the hub's, in two batches of 8, by a tiny decoder of the class."""
    names = ("query", "positive", "negative") if study == "sgpt_msmarco" else ("anchor", "positive", "negative")
    rows = ["\t".join(names), *(f"Who is {i}?\tIt is {i * i} here.\tNobody is {i} there." for i in range(16))]
    (tmp_path / "triplets.tsv").write_text("\n".join(rows) + "\n")
    for name in ("validation", "test"):
        pairs = [f"A {name} plays {i}.\tSomebody plays {i * i}.\t{i % 6}" for i in range(12)]
        (tmp_path / f"{name}.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *pairs]) + "\n")
    validation, test = ({"path": f"{name}.tsv", "score_range": [0, 5]} for name in ("validation", "test"))
    words = ["compare", study, "--only", "bitfit", "--seeds", "0", "data.train.path=triplets.tsv", "data.batch_size=8"]
    words += [
        "data.train.subset=null",
        "data.train.revision=null",
        "trainer.max_epochs=1",
        "trainer.val_check_interval=1.0",
    ]
    words += [f"data.validation={json.dumps(validation)}", f"data.test={json.dumps({'own': test})}"]
    words += [f"model.backbone.name={decoder_folder(architecture)}", "model.backbone.revision=null"]
    words += ["trainer.log_every_n_steps=1", "trainer.accelerator=cpu"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMBEDLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    processes.serve(monkeypatch)
    assert cli.main(words) == 0
    (folder,) = tmp_path.glob("runs/*/bitfit/seed-0")
    with (folder / "metrics.csv").open() as file:
        logged = [row["train/negatives"] for row in csv.DictReader(file) if row.get("train/negatives")]
    assert [float(own) for own in logged] == [2 * 8 - 1] * 2, "all candidates of a batch but the anchor's own"
    config = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]
    assert (config["chunk_size"], config["brackets"]) == (96, study == "sgpt_msmarco")
    assert config["training"]["learning_rate"] == (4e-4 if study == "sgpt_msmarco" else None)
