"""The command line: quick answers, and one sentence for everything that is wrong."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
import types
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

import embedlab
from embedlab import cli, runs, yaml_files
from embedlab.analysis import probe
from embedlab.errors import UserError
from embedlab.study import compare
from tests import processes

ROOT = Path(embedlab.__file__).parent.parent
STRATEGIES = """
    from embedlab.strategies.base import Embedder, Training
    from embedlab.backbone import Backbone
    from embedlab.backbone.tuning import Tuning

    class Method(Embedder):
        def __init__(
            self, backbone: Backbone, width: int = 3, training: Training = Training(), tuning: Tuning | None = None
        ) -> None:
            super().__init__()

        def embed(self, texts, role=None): ...

    class Simple(Embedder):
        def embed(self, texts, role=None): ...

    class Half(Embedder): ...
    class Other: ...
    """


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with strategies and configurations of a user's own."""
    (tmp_path / "own_methods.py").write_text(textwrap.dedent(STRATEGIES))
    (tmp_path / "method.yaml").write_text("model:\n  class_path: own_methods.Method\n  init_args: {width: 4}\n")
    (tmp_path / "simple.yaml").write_text("model: {class_path: own_methods.Simple}\n")
    (tmp_path / "small.yaml").write_text("model: {init_args: {backbone: {name: small}}}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a wrong command line and return its one sentence."""
    assert cli.main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("embedlab: error: ")
    assert err.count("\n") == 1
    return err.removeprefix("embedlab: error: ").rstrip("\n")


# Answers without torch --------------------------------------------------------------------------------------


def installed(folder: Path, *words: str, status: int = 0) -> set[str]:
    """Run Python and give the installed packages it imported."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert run.returncode == status, run.stderr
    names = {line.rpartition("|")[2].strip().partition(".")[0] for line in run.stderr.splitlines()}
    return names & {*packages_distributions(), "embedlab"}


@pytest.fixture(scope="module")
def by_itself(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What an installation imports before anything is asked of it."""
    return installed(tmp_path_factory.mktemp("empty"), "-c", "")


QUICK = {"embedlab", "yaml"}
WITH_TABLES = QUICK | {"numpy", "psutil", "rich"}


@pytest.mark.parametrize(
    ("arguments", "status", "needed"),
    [
        (["--help"], 0, QUICK),
        (["--version"], 0, QUICK),
        (["compare", "--help"], 0, WITH_TABLES),
        (["report", "--help"], 0, WITH_TABLES),
        (["cmpare"], 2, QUICK),
        (["fit", "--modle", "Tfidf"], 2, QUICK),
        (["fit", "-c", "nowhere.yaml"], 2, QUICK),
        (["compare", "nowhere.yaml"], 2, WITH_TABLES),
        (["report", "nowhere"], 2, WITH_TABLES),
    ],
)
def test_an_answer_imports_no_more_than_it_needs(
    tmp_path: Path, by_itself: set[str], arguments: list[str], status: int, needed: set[str]
) -> None:
    """Nearly all the time of an answer is imports: torch takes seconds, all that is needed here a fifth of one."""
    assert installed(tmp_path, "-m", "embedlab", *arguments, status=status) - by_itself <= needed


def test_an_import_too_many_is_seen(tmp_path: Path, by_itself: set[str]) -> None:
    assert "pyarrow" in installed(tmp_path, "-c", "import pyarrow") - by_itself - WITH_TABLES


def test_help_shows_what_a_newcomer_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for word in ("embedlab compare demo", "embedlab fit -c", "embedlab report", "configs [NAME]"):
        assert word in out
    assert max(map(len, out.splitlines())) <= 110


def test_without_a_command_it_shows_help_and_says_it_was_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert capsys.readouterr().err.startswith("usage: embedlab")


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert error(capsys, "cmpare").endswith("got 'cmpare'; did you mean compare.")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"embedlab {embedlab.__version__}\n"


# Handing over -----------------------------------------------------------------------------------------------


def test_a_run_is_handed_to_training_as_typed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    fake = types.ModuleType("embedlab.training.cli")

    def run(arguments: list[str]) -> int:
        seen.append(arguments)
        return 7

    fake.main = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "embedlab.training.cli", fake)
    monkeypatch.setattr("embedlab.training.cli", fake, raising=False)
    typed = ["embedlab", "fit", "-c", "method.yaml"]
    monkeypatch.setattr(sys, "argv", typed)
    assert cli.main() == 7
    assert seen == [["fit", "-c", "method.yaml"]]
    assert sys.argv is typed
    assert sys.path[-1] == str(here)


def test_interruption(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "main", interrupt)
    assert cli.main(["compare"]) == 130
    assert "nothing finished is lost, the same command resumes" in capsys.readouterr().err
    monkeypatch.setattr(probe, "main", interrupt)  # which writes its tables at its end
    assert cli.main(["probe"]) == 130
    err = capsys.readouterr().err
    assert "the same command begins anew, but for hidden states that are cached" in err
    assert "lost" not in err


def typed(words: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
    """Type a command line in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **how.pop("environment", {})}
    command = [sys.executable, "-m", "embedlab", *words]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment, check=False, **how)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("words", [["report", "."], ["configs"], ["--help"]])
def test_an_output_that_takes_nothing_is_one_sentence(tmp_path: Path, words: list[str]) -> None:
    runs.write_result(tmp_path / "r", {"metrics": {}})
    with open("/dev/full", "w") as full:
        done = typed(words, stdout=full, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "embedlab: error: the disk or device must take what is written, but it cannot (No space left on device); make "
        "room, or write elsewhere.\n"
    )


LONG = 300 * "n"
TOO_LONG = {
    f"encode {LONG} there.txt -o v.npy": LONG,
    f"encode Tfidf {LONG}.txt -o v.npy": LONG,
    f"encode Tfidf there.txt -o {LONG}.npy": "`--out` must have a name of at most 220 bytes, got one of 304",
    f"encode Tfidf there.txt -o {LONG[:250]}.npy": "`--out` must have a name of at most 220 bytes, got one of 254",
    f"score Tfidf {LONG}.csv -o s.csv": LONG,
    f"search {LONG} query --corpus there.txt": LONG,
    f"leakage {LONG}.csv there.csv": LONG,
    f"report {LONG}": LONG,
    f"report . --markdown {LONG}.md": LONG,
    f"ls {LONG}": LONG,
    f"errors {LONG}": LONG,
    f"evaluate bm25 --retrieval {LONG}": LONG,
    f"mine {LONG} -o t.jsonl": LONG,
    f"mine set -o {LONG}.jsonl": "`--out` must have a name of at most 220 bytes, got one of 306; give a shorter one",
    f"export {LONG} out": LONG,
    f"export there {LONG}": "`DIR` must have a name of at most 220 bytes, got one of 300; give a shorter one",
    f"probe tiny --out {LONG}": LONG,
    f"fit -c {LONG}": LONG,
    f"fit --model Tfidf --data.train.path {LONG}.csv --data.validation.path there.csv": LONG,
    f"fit --model Tfidf --data.train.path there.csv --data.validation.path there.csv --run_dir {LONG}": LONG,
    f"compare {LONG}": LONG,
}


@pytest.mark.parametrize("words", TOO_LONG, ids=lambda words: words.replace(LONG, "LONG").replace("n" * 250, "LONG"))
def test_a_name_that_is_too_long_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.txt").write_text("one\n")
    (tmp_path / "there.csv").write_text("sentence1,sentence2,score\na,b,1\nc,d,0\n")
    runs.write_result(tmp_path / "r", {"metrics": {}})
    assert cli.main(words.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("embedlab: error: ")
    assert (said := TOO_LONG[words])[:40] in err
    assert said in (LONG, LONG[:250]) or said in err
    assert err.count("\n") == 1


def test_a_cache_of_a_name_that_is_too_long_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EMBEDLAB_CACHE", LONG)
    assert cli.main(["features", "ls"]) == 2
    err = capsys.readouterr().err
    assert f"{LONG[:40]}" in err
    assert err.count("\n") == 1


def test_a_file_that_cannot_be_read_is_not_told_as_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("one\n")

    def denied(arguments: list[str]) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(secret))

    monkeypatch.setattr(compare, "main", denied)
    assert cli.main(["compare"]) == 1, "it can be read, so that writing failed"
    assert "must take what is written" in capsys.readouterr().err
    monkeypatch.setattr(os, "access", lambda path, mode: not (str(path) == str(secret) and mode == os.R_OK))
    assert cli.main(["compare"]) == 2
    assert capsys.readouterr().err == (
        f"embedlab: error: {secret} must be readable, but it is not (Permission denied); change its permissions, or name "
        "another one.\n"
    )
    monkeypatch.setattr(os, "access", lambda path, mode: not (str(path) == str(tmp_path) and mode == os.X_OK))
    assert cli.main(["compare"]) == 2
    assert capsys.readouterr().err == (
        f"embedlab: error: {tmp_path} must be a folder that can be entered, but it cannot (Permission denied); change its "
        "permissions, or name another one.\n"
    )


def _as_a_module() -> None:
    """Be called as `python -m embedlab` is."""
    sys.argv[0] = str(ROOT / "embedlab" / "__main__.py")


@pytest.mark.slow  # imports of eight seconds for one word
def test_a_module_that_is_run_has_the_name_of_the_program(tmp_path: Path) -> None:
    done = processes.run(tmp_path, ["test", "--help"], 0, _as_a_module)
    assert done.stdout.startswith("usage: embedlab "), done.stdout[:60]


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for words in (["--help"], ["configs"]):
        done = typed(words, stdout=writer, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (1, "")
    os.close(writer)


@pytest.mark.parametrize("command", ["fit", "compare"])
@pytest.mark.parametrize(("name", "value"), [("RANK", "first"), ("NODE_RANK", "99999999999"), ("WORLD_SIZE", "")])
def test_a_rank_that_is_none_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    said = error(capsys, command, "nowhere.yaml")
    assert said.startswith(f"`{name}` in the environment must be a whole number below 2^31, got {value!r}; ")


# Wrong command lines ----------------------------------------------------------------------------------------

FILES = {
    "broken": "a: 1\nb: ]\n",
    "twice": "model:\n  width: 1\n  width: 2\n",
    "list": "- a\n",
    "top": "modle: {}\n",
    "old": "model: {class_path: own_methods.Method, init_args: {tuning: {class_path: embedlab.tuning.LoRA}}}\n",
    "before": "model: {class_path: own_methods.Simple}\nrequest: abc\n",
    "wrong": "model: {class_path: own_methods.Method, init_args: {widht: 3}}\n",
    "below": "model: {class_path: own_methods.Method, init_args: {training: {warmpu: 3}}}\n",
    "unknown": "model: {class_path: own_methods.Metod}\n",
    "parts": "model:\n  class_path: own_methods.Method\n  init_args:\n"
    "    tuning: {class_path: embedlab.backbone.tuning.LoRRA}\n",
    "depth": "model:\n  class_path: own_methods.Method\n  init_args:\n"
    "    tuning: {class_path: embedlab.backbone.tuning.LoRA, init_args: {rnak: 3}}\n",
    "epochs": "trainer: {max_epoch: 3}\n",
    "flat": "max_epochs: 3\n",
    "data": "data: {train: {pth: x}}\n",
    "test": "data: {test: {any: {pth: x}}}\n",
    "logger": "trainer: {logger: [{class_path: lightning.pytorch.loggers.CSVLoger}]}\n",
    "saved": "trainer: {logger: [{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dirr: x}}]}\n",
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-c metod.yaml", "metod.yaml does not exist; did you mean method.yaml."),
        ("--config=metod.yaml", "did you mean method.yaml."),
        ("-c missing/metod.yaml", "there is no folder missing; correct the path."),
        ("-c .", ". must be a file, got a folder; name a file in it."),
        ("-c", "`-c` must be followed by a YAML file, got nothing; name one."),
        ("-c broken.yaml", "broken.yaml, line 2, must be YAML, but "),
        ("-c twice.yaml", "twice.yaml, line 3, must be YAML, but the key 'width' stands there twice; delete one."),
        ("-c list.yaml", "list.yaml must hold `key: value` pairs, got a list; begin no line with -."),
        ("-c top.yaml", "`modle` in top.yaml must be one of this program's options; did you mean model."),
        ("-c method.yaml --modle.width 3", "`modle` must be one of this program's options; did you mean model."),
        (
            "-c old.yaml",
            "`embedlab.tuning.LoRA` in old.yaml must be written embedlab.backbone.tuning.LoRA, as it has moved.",
        ),
        ("--model.tuning embedlab.tuning.LoRA", "must be written embedlab.backbone.tuning.LoRA"),
        (
            "-c before.yaml",
            "`request` in before.yaml must be left out, as it is no longer an option; delete that line.",
        ),
    ],
)
def test_files_and_names_at_the_top_are_answered_at_once(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "embedlab.training.cli", None)  # importing it fails
    write(here, FILES)
    assert message in error(capsys, "fit", *arguments.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "`model` must name a strategy, got none; give -c configs/strategies/NAME.yaml"),
        (
            "-c method.yaml --max_epochs 3",
            "`max_epochs` must be an option of embedlab fit; did you mean trainer.max_epochs.",
        ),
        ("-c method.yaml -c flat.yaml", "`max_epochs` in flat.yaml must be an option"),
        ("-c method.yaml --width 3", "; did you mean model.width."),
        ("-c method.yaml --trainer.max_epoch 3", "`trainer.max_epoch` must be an option of Trainer; did you mean"),
        ("-c method.yaml -c epochs.yaml", "`trainer.max_epoch` in epochs.yaml must be an option of Trainer"),
        ("-c method.yaml --model.widht 3", "`model.widht` must be an option of Method; did you mean model.width."),
        ("-c method.yaml --model.widht=3", "`model.widht` must be an option of Method; did you mean model.width."),
        ("-c method.yaml --model.init_args.widht 3", "did you mean model.width."),
        ("--model.width 3", "`model.width` must come behind what names the class"),
        ("-c wrong.yaml", "`model.widht` in wrong.yaml must be an option of Method; did you mean model.width."),
        (
            "-c below.yaml",
            "`model.training.warmpu` in below.yaml must be an option of Method; did you mean model.training.w",
        ),
        ("-c method.yaml --model.backbone.dtyp float32", "`model.backbone.dtyp` must be an option of Method"),
        ('-c method.yaml --model.backbone {"dtyp":"x"}', "did you mean model.backbone.dtype."),
        ("-c simple.yaml -c small.yaml", "`model.backbone` in small.yaml must be an option of Simple"),
        ("-c method.yaml --model own_methods.Metod", "did you mean own_methods.Method."),
        ("--model Tfidff", "`model` must be the name or dotted path of a class, got Tfidff; did you mean Tfidf."),
        (
            "--model own_methods.Half",
            "must be a class that can be built, but own_methods.Half is abstract, without embed;",
        ),
        ("--model own_methods.Other", "must be an EmbeddingStrategy, but own_methods.Other does not subclass it;"),
        ("--model nowhere.Method", "there is no module 'nowhere'"),
        (
            "-c method.yaml --model.tuning.class_path embedlab.tunning.LoRA",
            "did you mean embedlab.backbone.tuning.LoRA.",
        ),
        (
            "-c unknown.yaml",
            "`model` in unknown.yaml must lead to a class, but own_methods defines no Metod; did you mean",
        ),
        ("-c parts.yaml", "`model.tuning` in parts.yaml must lead to a class, but embedlab.backbone.tuning defines no"),
        ("-c depth.yaml", "`model.tuning.rnak` in depth.yaml must be an option of LoRA; did you mean"),
        (
            "-c simple.yaml --data.trian.path x",
            "`data.trian` must be an option of DataModule; did you mean data.train.",
        ),
        ("-c simple.yaml --data.train.pth x", "did you mean data.train.path."),
        ("-c simple.yaml -c data.yaml", "`data.train.pth` in data.yaml must be an option of Source"),
        ("-c simple.yaml --data.test.any.pth x", "did you mean data.test.any.path."),
        ("-c simple.yaml -c test.yaml", "`data.test.any.pth` in test.yaml must be an option of Source"),
        ("-c simple.yaml -c logger.yaml", "did you mean lightning.pytorch.loggers.CSVLogger."),
        ("-c simple.yaml -c saved.yaml", "`trainer.logger.save_dirr` in saved.yaml must be an option of CSVLogger"),
        ("-c simple.yaml extra", "`extra` must be an option, which begins with --"),
        ("-c simple.yaml --trainer.max_epochs=abc", "trainer.max_epochs"),
    ],
)
def test_wrong_names_are_answered_in_one_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    write(here, FILES)
    assert message in error(capsys, "fit", *arguments.split())


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(content)


@pytest.mark.parametrize(
    "arguments",
    [
        "-c method.yaml -c small.yaml --seed_everything 3 --trainer.max_epochs=2 --model.training.warmup 0.2",
        "-c method.yaml -c small.yaml --run_dir x --study y --label z",
        '--model own_methods.Method --model.backbone.name small --model.training {"warmup":0}',
        "--model Tfidf",
        "-c simple.yaml --data.train.path x --data.train.limit 20",
        "-c merged.yaml",
        "-c sub.yaml",
    ],
)
def test_what_is_right_passes(here: Path, monkeypatch: pytest.MonkeyPatch, arguments: str) -> None:
    from embedlab.training.cli import RunCLI

    class ParsedError(Exception):
        """The parser had no complaint."""

    def parsed(self: RunCLI) -> None:
        raise ParsedError

    write(
        here,
        {
            "merged": "label: &b small\nmodel: {class_path: own_methods.Method, init_args: {backbone: {name: *b}}}\n",
            "sub": "model: own.yaml\n",
            "own": "class_path: own_methods.Method\n",
        },
    )
    monkeypatch.setattr(RunCLI, "before_instantiate_classes", parsed)
    with pytest.raises(ParsedError):
        cli.main(["fit", *arguments.split()])


def test_a_checkpoint_never_overrides_what_was_typed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning would take the class and its arguments from what the checkpoint says of them."""
    import torch

    from embedlab.training.cli import RunCLI

    seen = {}

    def stop(self: RunCLI) -> None:
        seen.update(self.plain(self.config))
        raise UserError("seen")

    monkeypatch.setattr(RunCLI, "instantiate_classes", stop)
    torch.save({"hyper_parameters": {"_class_path": "own_methods.Simple"}}, here / "own.ckpt")
    given = ["--model.width", "5", "--ckpt_path", "own.ckpt", "--data.test", "{own: {path: pairs.tsv}}"]
    assert cli.main(["test", "-c", "method.yaml", *given]) == 2
    assert seen["model"]["class_path"] == "own_methods.Method"
    assert seen["model"]["init_args"]["width"] == 5
    assert seen["ckpt_path"] == "own.ckpt"


def test_a_damaged_checkpoint_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "own.ckpt").write_text("nothing")
    said = error(capsys, "test", "-c", "method.yaml", "--ckpt_path", "own.ckpt")
    assert said.startswith("`ckpt_path` must name a checkpoint, such as RUN/checkpoints/best.ckpt, but own.ckpt is")


# YAML -------------------------------------------------------------------------------------------------------


def test_a_mapping_may_be_merged_but_no_key_given_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("base: &b {x: 1}\nown: {<<: *b, y: 2}\n")
    assert yaml_files.read_yaml(path) == {"base": {"x": 1}, "own": {"x": 1, "y": 2}}
    path.write_text("")
    assert yaml_files.read_yaml(path) == {}
    path.write_bytes(b"a: \xff")
    with pytest.raises(UserError, match="UTF-8"):
        yaml_files.read_yaml(path)


@pytest.mark.parametrize(
    "value", [None, True, 3, 0.5, 1e-5, "text", "null", "3", "a: b", [1, None], {"a": {"b": 1}}, ""]
)
def test_values_survive_the_command_line(value: object) -> None:
    read = yaml_files.read_value(yaml_files.write_value(value))
    assert read == value or float(read) == value
