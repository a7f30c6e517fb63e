"""Studies as they are described, and every fault that is answered before anything starts."""

from __future__ import annotations

import functools
import sys
import textwrap
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from embedlab import cli
from embedlab.errors import UserError
from embedlab.study import compare
from tests.studies import STUDY, Judge, make_study


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder_folder: Callable[[str], Path]) -> Path:
    """A working directory with a study of two strategies, which is checked in this process."""
    make_study(tmp_path, str(decoder_folder("llama")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    main = functools.partial(compare.main, server=lambda: nullcontext(Judge(tmp_path)))
    monkeypatch.setattr(compare, "main", main)
    monkeypatch.delitem(sys.modules, "study_methods", raising=False)
    return tmp_path


# Refused before anything starts -----------------------------------------------------------------------------


def test_an_option_that_a_strategy_lacks_must_be_given_to_the_others_only(here: Path) -> None:
    with pytest.raises(UserError, match=r"`model\.width` for every run .* but Simple has none of that name"):
        compare.main(["study.yaml", "model.width=3"])
    (here / "study.yaml").write_text(
        (here / "study.yaml")
        .read_text()
        .replace("method: method.yaml", "method: {config: method.yaml, overrides: {model.width: 4}}")
    )
    assert compare.main(["study.yaml", "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            STUDY,
            "",
            "`strategies` in study.yaml must be a mapping of at least one `label: config.yaml`, got null; write one so.",
        ),
        (
            "simple: simple.yaml",
            "simple: simpel.yaml",
            "`strategies.simple` in study.yaml (paths are relative to it): simpel.yaml does not exist; did you mean simple.yaml.",
        ),
        (
            "simple: simple.yaml",
            "method: simple.yaml",
            "study.yaml, line 8, must be YAML, but the key 'method' stands there twice; delete one.",
        ),
        (
            "simple: simple.yaml",
            "Method: simple.yaml",
            "must have labels that differ by more than case, got 'method' and 'Method'",
        ),
        ("simple: simple.yaml", "a/b: simple.yaml", "must be a name that can be a folder, got 'a/b'"),
        ("simple: simple.yaml", "..: simple.yaml", "must be a name that can be a folder, got '..'"),
        ("simple: simple.yaml", "-x: simple.yaml", "must be a name that can be a folder, got '-x'"),
        ("simple: simple.yaml", "simple: 3", "must be a YAML file, or a mapping with `config`, got 3; name a file."),
        (
            "simple: simple.yaml",
            "simple: {config: simple.yaml, override: {}}",
            "`strategies.simple.override` in study.yaml must be config, overrides or seeds; did you mean overrides.",
        ),
        (
            "simple: simple.yaml",
            "simple: {config: simple.yaml, overrides: {model.depht: 1}}",
            "error: simple: `model.depht` must be an option of Simple; did you mean model.depth.",
        ),
        ("study: demo", "study: a/b", "`study` in study.yaml must be a name that can be a folder"),
        (
            "seeds:",
            "seed:",
            "`seed` in study.yaml must be one of study, protocol, backbone, seeds, strategies, over",
        ),
        ("[0, 1]", "[0, 0]", "`seeds` in study.yaml must differ from each other, got 0 twice; leave one out."),
        ("[0, 1]", "[]", "`seeds` in study.yaml must be a list of at least one seed"),
        ("[0, 1]", "[a]", "`seeds` in study.yaml must be whole numbers"),
        ("[0, 1]", "[-1]", "`seeds` in study.yaml must be whole numbers"),
        (
            "protocol: protocol.yaml",
            "",
            "`protocol` in study.yaml must name the YAML file that all runs share",
        ),
        (
            "protocol.yaml",
            "protocl.yaml",
            "`protocol` in study.yaml (paths are relative to it): protocl.yaml does not exist; did you mean protocol.yaml.",
        ),
        (
            "small.yaml",
            "smal.yaml",
            "`backbone` in study.yaml (paths are relative to it): smal.yaml does not exist; did you mean small.yaml.",
        ),
        (
            "simple: simple.yaml",
            "simple: {config: simple.yaml, seeds: [7]}",
            "`strategies.simple.seeds` in study.yaml must be among the study's [0, 1], got 7",
        ),
        ("seeds:", "overrides: 3\n    seeds:", "`overrides` in study.yaml must be a mapping"),
        ("seeds:", "overrides: {run_dir: x}\n    seeds:", "must leave `run_dir` alone"),
        ("seeds:", "overrides: {model.class_path: x}\n    seeds:", "another class is another strategy"),
        (
            "seeds:",
            "overrides: {trainer.max_epoch: 3}\n    seeds:",
            "method, simple: `trainer.max_epoch` must be an option of Trainer; did you mean trainer.max_epochs.",
        ),
    ],
)
def test_a_study_with_a_fault(here: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str) -> None:
    study = textwrap.dedent(STUDY.replace(old, new))
    (here / "study.yaml").write_text(study)
    assert cli.main(["compare", "study.yaml"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("stduy.yaml", "stduy.yaml does not exist; did you mean study.yaml."),
        (
            "study.yaml --only simpel",
            "`--only` must name a strategy of the study, got 'simpel'; did you mean simple.",
        ),
        ("study.yaml --seeds 1 1", "`--seeds` must differ from each other, got 1 twice; leave one out."),
        ("study.yaml --seeds a", "`--seeds` must be whole numbers"),
        (
            "study.yaml --jobs 0",
            "`--jobs` must be at least 1, the number of runs at a time, got 0; leave it out for one.",
        ),
        (
            "study.yaml --jobs many",
            "`--jobs` must be a whole number, got 'many'; see embedlab compare --help.",
        ),
        ("study.yaml --job 2", "`--job` must be an option of embedlab compare; did you mean --jobs."),
        ("study.yaml oops", "An override must be KEY=VALUE, got 'oops'"),
        ("study.yaml --data.batch_size", "An override must be KEY=VALUE, got 'data.batch_size'"),
        ("study.yaml label=x", "An override must leave `label` alone"),
        (
            "study.yaml modle.width=x",
            "An override must begin with model, data, trainer, got `modle.width`; did you mean model.",
        ),
        ("", "`STUDY.yaml` must be given, got none; see embedlab compare --help."),
    ],
)
def test_a_command_line_with_a_fault(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    assert cli.main(["compare", *arguments.split()]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{class_path: study_methods.Methd}", r"method: `model` in method\.yaml .* did you mean study_methods\.Method"),
        ("{class_path: study_methods.Method, init_args: {widht: 3}}", r"method: `model\.widht` in method\.yaml"),
        (
            "{class_path: embedlab.layerwise.Method}",
            r"method: .* must be written embedlab\.strategies\.freeze_network\.M",
        ),
    ],
)
def test_a_fault_in_a_configuration_names_the_strategy(here: Path, content: str, message: str) -> None:
    (here / "method.yaml").write_text(f"model: {content}\n")
    with pytest.raises(UserError, match=message):
        compare.main(["study.yaml"])


def test_every_fault_is_told_at_once(here: Path) -> None:
    (here / "study.yaml").write_text(
        textwrap.dedent(STUDY).replace(
            "simple: simple.yaml",
            "simple: {config: simple.yaml, overrides: {data.train.path: gone.tsv}}\n"
            "  third: {config: method.yaml, overrides: {model.backbone.name: nowhere, data.train.path: gone.tsv}}",
        )
    )
    with pytest.raises(UserError) as caught:
        compare.main(["study.yaml", "model.width=3", "--dry-run"])
    first, *lines = str(caught.value).splitlines()
    assert first == "3 faults in the study:"
    data, shared, decoder = sorted(lines)
    assert shared.startswith("  simple: `model.width` for every run must be an option of every strategy")
    assert data.startswith("  simple, third: `data.train.path` must be")
    assert "'gone.tsv' is not there" in data
    assert decoder.startswith("  third: `model.backbone.name` must be")
    with pytest.raises(UserError) as caught:
        compare.main(["study.yaml", "trainer.max_epoch=3", "data.trian.path=x", "trainer.accelerator=cpu"])
    assert [line.partition(" must")[0] for line in str(caught.value).splitlines()[1:]] == [
        "  method, simple, third: `data.trian`",
        "  method, simple, third: `trainer.max_epoch`",
    ]
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        ("KeyError('lost')", "KeyError: 'lost'"),
        (
            "SystemExit(3)",
            r"`study_methods` must not end the program, but study_methods.py, line \d+, does .*; raise an error instead\.",
        ),
    ],
)
def test_what_a_class_raises_is_a_fault_of_its_strategy(here: Path, raised: str, told: str) -> None:
    with (here / "study_methods.py").open("a") as file:
        file.write(f"\nclass Odd(Simple):\n    def __init__(self):\n        raise {raised}\n")
    (here / "simple.yaml").write_text("model: {class_path: study_methods.Odd}\n")
    with pytest.raises(UserError, match=f"^simple: {told}$"):
        compare.main(["study.yaml"])


# Overrides as a file ----------------------------------------------------------------------------------------


def test_overrides_are_written_as_they_were_given(here: Path) -> None:
    callback = {"class_path": "lightning.pytorch.callbacks.RichModelSummary"}
    (answer,) = judged(
        here,
        {
            "data.train.limit": None,
            "data.validation": {"path": "pairs.tsv", "limit": 4},
            "model.backbone.dtype": "float32",
            "model.width": 4,
            "trainer.callbacks+": callback,
            "trainer.precision": None,
        },
    )
    assert answer["faults"] == []
    assert answer["content"] == {
        "data": {"train": {"limit": None}, "validation": {"path": "pairs.tsv", "limit": 4}},
        "model": {"init_args": {"backbone": {"dtype": "float32"}, "width": 4}},
        "trainer": {"callbacks+": callback, "precision": None},
    }


def test_what_a_file_would_replace_is_written_whole(here: Path) -> None:
    """A typed option changes one member of a dictionary or list; a file would leave out the others."""
    (answer,) = judged(here, {"data.test.more.path": "pairs.tsv", "data.batch_size": 4})
    assert answer["faults"] == []
    assert {name: own["path"] for name, own in answer["content"]["data"]["test"].items()} == {
        "own": "pairs.tsv",
        "more": "pairs.tsv",
    }
    assert answer["content"]["data"]["batch_size"] == 4
    (here / "protocol.yaml").write_text(
        (here / "protocol.yaml")
        .read_text()
        .replace(
            "logger: false", "logger: [{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: x}}]"
        )
    )
    (answer,) = judged(here, {"trainer.logger.init_args.prefix": "mine"})
    assert answer["faults"] == []
    (logger,) = answer["content"]["trainer"]["logger"]
    assert logger["init_args"]["prefix"] == "mine"


def judged(here: Path, overrides: dict[str, Any]) -> list[dict[str, Any]]:
    """Check the first strategy of the study with overrides."""
    wanted = {"files": ["protocol.yaml", "method.yaml"], "backbone": "small.yaml", "shared": {}, "own": overrides}
    return Judge(here).check([{**wanted, "seeds": [0, 1], "places": ["--run_dir", "runs/x"]}])


def test_identities_differ_by_seed_and_by_what_decides(here: Path) -> None:
    (first,) = judged(here, {})
    assert len({*first["identities"].values()}) == 2
    (shown,) = judged(here, {"trainer.log_every_n_steps": 3})
    assert shown["identities"] == first["identities"]
    (other,) = judged(here, {"model.width": 4})
    assert not {*other["identities"].values()} & {*first["identities"].values()}
