"""Studies as they are described, and every fault that is answered before anything starts."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from embedlab import cli
from embedlab.errors import UserError
from embedlab.study import compare
from tests.studies import STUDY, make_study


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a study of two strategies."""
    make_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    return tmp_path


# Refused before anything starts -----------------------------------------------------------------------------


def test_an_option_that_a_strategy_lacks_must_be_given_to_the_others_only(here: Path) -> None:
    with pytest.raises(UserError, match=r"`model\.width` for every run .* but simple \(Simple\) has none"):
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
            "`strategies` in study.yaml must be a mapping of at least one `label: config.yaml`, got None.",
        ),
        (
            "simple: simple.yaml",
            "simple: simpel.yaml",
            "`strategies.simple` in study.yaml: simpel.yaml does not exist; did you mean simple.yaml.",
        ),
        (
            "simple: simple.yaml",
            "method: simple.yaml",
            "study.yaml, line 8 must be YAML, but the key 'method' stands there twice.",
        ),
        (
            "simple: simple.yaml",
            "Method: simple.yaml",
            "must have labels that differ by more than case, got 'method' and 'Method'",
        ),
        ("simple: simple.yaml", "a/b: simple.yaml", "must be a name that can be a folder, got 'a/b'"),
        ("simple: simple.yaml", "..: simple.yaml", "must be a name that can be a folder, got '..'"),
        ("simple: simple.yaml", "-x: simple.yaml", "must be a name that can be a folder, got '-x'"),
        ("simple: simple.yaml", "simple: 3", "must be a YAML file, or a mapping with `config`, got 3."),
        (
            "simple: simple.yaml",
            "simple: {config: simple.yaml, override: {}}",
            "`strategies.simple.override` in study.yaml must be config, overrides or seeds; did you mean overrides.",
        ),
        (
            "simple: simple.yaml",
            "simple: {config: simple.yaml, overrides: {model.depht: 1}}",
            "simple: `model.depht` must be an option of Simple; did you mean model.depth.",
        ),
        ("study: demo", "study: a/b", "`study` in study.yaml must be a name that can be a folder"),
        (
            "seeds:",
            "seed:",
            "`seed` in study.yaml must be one of study, protocol, backbone, seeds, strategies, over",
        ),
        ("[0, 1]", "[0, 0]", "`seeds` in study.yaml must differ from each other, got 0 twice."),
        ("[0, 1]", "[]", "`seeds` in study.yaml must be at least one seed"),
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
            "`protocol` in study.yaml: protocl.yaml does not exist; did you mean protocol.yaml.",
        ),
        (
            "small.yaml",
            "smal.yaml",
            "`backbone` in study.yaml: smal.yaml does not exist; did you mean small.yaml.",
        ),
        ("seeds:", "overrides: 3\n    seeds:", "`overrides` in study.yaml must be a mapping"),
        ("seeds:", "overrides: {run_dir: x}\n    seeds:", "must leave `run_dir` alone"),
        ("seeds:", "overrides: {model.class_path: x}\n    seeds:", "another class is another strategy"),
        (
            "seeds:",
            "overrides: {trainer.max_epoch: 3}\n    seeds:",
            "method: `trainer.max_epoch` must be an option of Trainer; did you mean trainer.max_epochs.",
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
        ("study.yaml --seeds 1 1", "`--seeds` must differ from each other, got 1 twice."),
        ("study.yaml --seeds a", "`--seeds` must be whole numbers"),
        ("study.yaml --jobs 0", "`--jobs` must be at least 1, got 0."),
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


def test_a_fault_in_a_configuration_names_the_strategy(here: Path) -> None:
    (here / "method.yaml").write_text("model: {class_path: study_methods.Methd}\n")
    with pytest.raises(UserError, match=r"method: `model` in method\.yaml: .* did you mean Method"):
        compare.main(["study.yaml"])
    (here / "method.yaml").write_text("model: {class_path: study_methods.Method, init_args: {widht: 3}}\n")
    with pytest.raises(UserError, match=r"method: `model\.widht` in method\.yaml"):
        compare.main(["study.yaml"])
