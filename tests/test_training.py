"""`embedlab fit` in processes of its own: whole runs, kills, resumes, mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from filelock import FileLock

from tests import processes

ROOT = Path(__file__).parents[1]
ROWS = [
    ("A man is playing a guitar.", "A man plays the guitar.", 4.8, "captions"),
    ("Two dogs run through the snow.", "The market fell on Monday.", 0.2, "news"),
    ("A woman slices an onion.", "A woman is cutting an onion.", 4.5, "captions"),
    ("Kittens sleep.", "An aeroplane takes off.", 0.0, "captions"),
    ("He said nobody knows.", "Nobody knows, he said.", 4.0, "forums"),
    ("Shares rose 3 percent.", "Shares fell 3 percent.", 2.0, "news"),
    ("A child rides a horse.", "A kid is on a horse.", 3.8, "captions"),
    ("The cat sat on the mat.", "There is a dog in the garden.", 1.0, "captions"),
]


@pytest.fixture
def place(tmp_path: Path, decoder_folder: Callable[[str], Path]) -> Path:
    """Return a folder with data and a protocol for tiny runs."""
    lines = ["sentence1\tsentence2\tscore\tgenre"]
    lines += [f"{a} {i}\t{b}\t{score}\t{genre}" for i in range(6) for a, b, score, genre in ROWS]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines) + "\n")
    source = {"path": str(tmp_path / "pairs.tsv"), "score_range": [0, 5]}
    protocol = {
        "data": {
            "train": source,
            "validation": source,
            "test": {"own": source},
            "batch_size": 4,
            "eval_batch_size": 16,
        },
        "trainer": {"max_epochs": 2, "logger": False, "enable_model_summary": False, "accelerator": "cpu"},
    }
    (tmp_path / "protocol.yaml").write_text(yaml.safe_dump(protocol))
    backbone = {"model": {"init_args": {"backbone": {"name": str(decoder_folder("llama")), "dtype": "float32"}}}}
    (tmp_path / "backbone.yaml").write_text(yaml.safe_dump(backbone))
    return tmp_path


def command(place: Path, strategy: str, run: str, *more: str, subcommand: str = "fit") -> list[str]:
    config = ROOT / "configs" / "strategies" / f"{strategy}.yaml"
    words = [subcommand, "-c", "protocol.yaml", "-c", str(config)]
    words += [] if strategy == "tfidf" else ["-c", "backbone.yaml"]
    return [*words, "--run_dir", run, *more]


def run(place: Path, words: list[str], status: int = 0) -> processes.Done:
    return processes.run(place, words, status)


def run_afresh(place: Path, words: list[str]) -> None:
    """Do a run as a user does, in a process that has imported nothing."""
    environment = {**os.environ, "EMBEDLAB_CACHE": str(place / "cache"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def predictions(place: Path, run: str, name: str = "test-own") -> list[dict[str, Any]]:
    return pq.read_table(place / run / "predictions" / f"{name}.parquet").to_pylist()


def test_the_epoch_is_picked_by_pearson_where_that_is_asked_for(place: Path) -> None:
    run(place, command(place, "lora_bi", "r", "--data.select_by", "pearson"))
    result = json.loads((place / "r" / "result.json").read_text())
    assert result["selected"]["monitor"] == "val/pearson"
    assert result["selected"]["value"] == pytest.approx(result["metrics"]["validation"]["pearson"])


def test_a_whole_run_and_its_folder(place: Path) -> None:
    done = run(place, command(place, "lora_bi", "r", "--seed_everything", "3"))
    assert "test/own: Spearman" in done.stdout
    result = json.loads((place / "r" / "result.json").read_text())
    assert result["strategy"] == "LoRABiEncoder"
    assert result["seed"] == 3
    assert set(result["metrics"]) == {"validation", "test/own"}
    assert result["metrics"]["test/own"]["pairs"] == 48
    assert result["data"]["train"]["rows"] == 48
    assert 0 < result["parameters"]["trainable"] < result["parameters"]["total"]
    assert result["train_tokens"] > 0
    assert result["seconds"]["train"] > 0
    assert result["selected"]["monitor"] == "val/spearman"
    assert result["backbone"]["read"] == "packed"
    assert result["backbone"]["begin_of_text"] == "none"
    rows = predictions(place, "r")
    assert [row["id"] for row in rows] == list(range(48))
    assert rows[0]["first"] == ROWS[0][0] + " 0"
    assert rows[0]["label"] == pytest.approx(4.8 / 5)
    assert rows[0]["genre"] == "captions"
    assert {row["overlap"] for row in rows} == {"pair"}  # what is tested is what was trained on
    assert result["metrics"]["test/own"]["overlapping"] == 48
    assert json.loads((place / "r" / "status.json").read_text())["state"] == "done"

    # The validation table is that of the epoch that was kept, and so is the test table.
    from embedlab.metrics import spearman

    kept = predictions(place, "r", "validation")
    scores, labels = (torch.tensor([row[own] for row in kept]) for own in ("score", "label"))
    assert spearman(scores, labels) == pytest.approx(result["selected"]["value"])
    assert [r["score"] for r in kept] == pytest.approx([r["score"] for r in rows], abs=1e-6)  # the same 48 pairs

    # Its config.yaml makes the run again, elsewhere; and the checkpoint scores the same on its own.
    again = ["fit", "-c", "r/config.yaml", "--run_dir", "again"]
    run(place, again)
    assert predictions(place, "again") == rows
    rows = [{key: own for key, own in row.items() if key != "overlap"} for row in rows]  # `test` reads no other rows
    tested = ["test", "-c", "r/config.yaml"]
    run(place, [*tested, "--ckpt_path", "again/checkpoints/best.ckpt"])
    assert predictions(place, "r/test") == rows
    run(place, [*tested, "--data.eval_batch_size", "7"])  # the run's own checkpoint is found
    assert [row["score"] for row in predictions(place, "r/test")] == pytest.approx([r["score"] for r in rows], abs=1e-6)
    assert "`ckpt_path` must name what LoRABiEncoder has learned" in run(place, [*tested, "--run_dir", "s"], 2).stderr
    # What it learned is found beside its configuration, wherever that was moved.
    (place / "again").rename(place / "moved")
    assert "predictions: moved/test/predictions" in run(place, ["test", "-c", "moved/config.yaml"]).stdout
    assert predictions(place, "moved/test") == rows
    assert not (place / "again").exists()
    assert (place / "r" / "result.json").read_text() == json.dumps(result, indent=2, ensure_ascii=False) + "\n"

    # A finished run is never overwritten, and a checkpoint never meets another decoder.
    assert "holds a finished run" in run(place, [*again[:-1], "r"], status=2).stderr


def test_a_checkpoint_of_another_decoder_is_refused(place: Path, decoder_folder: Callable[[str], Path]) -> None:
    run(place, command(place, "sgpt_bi", "r", "--trainer.max_epochs", "1"))
    other = ["--ckpt_path", "r/checkpoints/best.ckpt", "--model.backbone.name", str(decoder_folder("qwen3"))]
    other += ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", ".", "--trainer.logger.name", ""]
    other += ["--trainer.logger.version", ""]
    done = run(place, command(place, "sgpt_bi", "other", *other, subcommand="test"), status=2)
    assert "another decoder" in done.stderr
    assert not (place / "other").exists()
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


BROKEN = """
import torch
from embedlab.backbone import Backbone
from embedlab.strategies.base import Embedder

class Broken(Embedder):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def embed(self, texts, role=None):
        raise KeyError("bug")
"""


def test_a_checkpoint_that_training_cannot_go_on_from_is_refused(place: Path) -> None:
    run(place, command(place, "lora_bi", "r", "--trainer.max_epochs", "1"))
    on = ["--trainer.max_epochs", "1", "--ckpt_path"]
    done = run(place, command(place, "lora_bi", "on", *on, "r/checkpoints/best.ckpt"), status=2)
    assert "r/checkpoints/best.ckpt holds weights only" in done.stderr
    done = run(place, command(place, "lora_bi", "on", *on, "r/checkpoints/last.ckpt"), status=2)
    assert "`trainer.max_epochs` must be more than the 1 of `ckpt_path`" in done.stderr
    on = ["--trainer.max_epochs", "3", "--model.training.learning_rate", "0.5", *on[2:], "r/checkpoints/last.ckpt"]
    done = run(place, command(place, "lora_bi", "on", *on), status=2)
    told = "`model.training.learning_rate` must be 0.001 for `ckpt_path`, whose optimiser goes on with that, got 0.5"
    assert told in done.stderr
    on = ["--trainer.max_epochs", "1", "--ckpt_path", "r/checkpoints/last.ckpt"]  # the strategy comes before the epochs
    done = run(place, command(place, "sgpt_bi", "on", *on), status=2)
    assert "`ckpt_path` must hold a checkpoint of SGPTBiEncoder, got one of LoRABiEncoder" in done.stderr
    assert not (place / "on").exists()


def test_training_goes_on_with_what_trained_before(place: Path) -> None:
    small = ["--model.pretraining", "null", "--model.network.widths", "[8]", "--trainer.check_val_every_n_epoch", "1"]
    run(place, command(place, "freeze", "r", *small, "--trainer.max_epochs", "1"))
    on = ["--trainer.max_epochs", "2", "--ckpt_path", "r/checkpoints/last.ckpt"]
    done = run(place, command(place, "freeze", "on", *small, *on, "--model.frozen", "true"), status=2)
    assert (
        "`model.frozen` must be false for `ckpt_path`, whose optimiser holds what trained then, got true" in done.stderr
    )
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (place / "on").exists()


def test_null_is_null_at_any_depth(place: Path) -> None:
    below = {"pretraining.source.split": "null", "pretraining.source.limit": "null", "backbone.max_length": "null"}
    words = [word for name, value in below.items() for word in (f"--model.{name}", value)]
    done = run(place, command(place, "freeze", "r", *words, "--print_config"))
    model = yaml.safe_load(done.stdout)["model"]["init_args"]
    source = model["pretraining"]["source"]
    assert [source["split"], source["limit"], model["backbone"]["max_length"]] == [None] * 3
    done = run(
        place, command(place, "freeze", "r", "--model.pretraining.source", "{path: a, limit: null}", "--print_config")
    )
    assert yaml.safe_load(done.stdout)["model"]["init_args"]["pretraining"]["source"]["limit"] is None


def test_what_learns_statistics_only_is_tested_by_those_that_its_run_took(place: Path) -> None:
    run(place, command(place, "pooled_decoder", "r", "--model.standardize", "zscore"))
    again = ["test", "-c", "r/config.yaml", "--data.train.limit", "3"]
    run(place, again)
    assert [own["score"] for own in predictions(place, "r/test", "test-own")] == [
        own["score"] for own in predictions(place, "r", "test-own")
    ]
    done = run(place, [*again, "--model.standardize", "none"], status=2)
    assert "`model.standardize` must be zscore for `ckpt_path`, which was made with that, got none" in done.stderr


def test_a_run_that_failed_before_it_learned_anything_leaves_its_folder_to_the_next(place: Path) -> None:
    (place / "broken.py").write_text(BROKEN)
    (place / "broken.yaml").write_text("model: {class_path: broken.Broken}")
    words = ["fit", "-c", "protocol.yaml", "-c", "broken.yaml", "-c", "backbone.yaml", "--run_dir", "r"]
    assert "KeyError: 'bug'" in run(place, words, status=1).stderr
    (place / "broken.py").write_text(BROKEN.replace('raise KeyError("bug")', "return torch.ones(len(texts), 2)"))
    run(place, words)


def test_a_checkpoint_of_other_shapes_is_refused(place: Path) -> None:
    run(place, command(place, "lora_bi", "r", "--trainer.max_epochs", "1"))
    other = ["--ckpt_path", "r/checkpoints/best.ckpt", "--model.rank", "4"]
    done = run(place, command(place, "lora_bi", "other", *other, subcommand="test"), status=2)
    assert "`model.rank` must be 16 for `ckpt_path`, which was made with that, got 4" in done.stderr
    same = ["--model.pooling", "embedlab.pooling.last", *other[:2]]
    done = run(place, command(place, "lora_bi", "other", *same, subcommand="test"), status=2)
    assert "`model.pooling` must be embedlab.pooling.weighted_mean for `ckpt_path`" in done.stderr
    assert not (place / "other").exists(), "before anything is loaded"
    free = ["--model.chunk_size", "2", "--model.backbone.tokens_per_pass", "50", "--model.scale", "9", *other[:2]]
    run(place, command(place, "lora_bi", "free", *free, "--data.eval_batch_size", "3", subcommand="test"))


@pytest.mark.parametrize(
    "more",
    [
        ["--trainer.max_epochs", "2", "--data.batch_size", "16"],
        ["--trainer.max_epochs=2", "--data.batch_size=16"],
        ["--trainer", "{max_epochs: 2}", "--data", "{batch_size: 16}"],
        ["-c", "own.yaml"],
    ],
)
def test_an_explicit_value_wins_however_it_is_said(place: Path, more: list[str]) -> None:
    (place / "own.yaml").write_text("trainer: {max_epochs: 2}\ndata: {batch_size: 16}\n")
    run(place, command(place, "freeze", "r", "--model.pretraining", "null", *more))
    result = json.loads((place / "r" / "result.json").read_text())
    # Its file asks for 150 epochs of 128 pairs, validated every 10; 2 epochs hold no tenth.
    assert result["schedule"] == {"epochs": 2, "steps": None, "batch_size": 16, "validate_every": 2}
    assert result["selected"]["epoch"] == 1


def test_a_strategys_file_has_the_last_word_where_nobody_else_speaks(place: Path) -> None:
    words = command(place, "freeze", "r", "--model.pretraining", "null", "--print_config")
    config = yaml.safe_load(run(place, words).stdout)
    assert (config["trainer"]["max_epochs"], config["data"]["batch_size"]) == (150, 128)


@pytest.mark.parametrize("subcommand", ["validate", "test", "predict"])
def test_every_subcommand_runs(place: Path, subcommand: str) -> None:
    more = ["--data.predict.path", str(place / "pairs.tsv"), "--data.predict.score_range", "[0, 5]"]
    done = run(place, command(place, "tfidf", "r", *more, subcommand=subcommand))
    name = {"validate": "validation", "test": "test-own", "predict": "predict"}[subcommand]
    rows = predictions(place, f"r/{subcommand}", name)
    assert [row["id"] for row in rows] == list(range(48))
    assert len({row["score"] for row in rows}) > 1
    assert not done.stderr
    assert f"predictions: r/{subcommand}/predictions/{name}.parquet" in done.stdout.splitlines()


def test_pairs_without_scores_are_predicted(place: Path) -> None:
    (place / "new.csv").write_text("a,b\nA hen lays eggs,A hen lays an egg\nBirds sing,It rains\n")
    more = ["--data.predict", "{path: new.csv, columns: {first: a, second: b}}", "--data.eval_batch_size", "1"]
    run(place, command(place, "pooled_decoder", "r", *more, subcommand="predict"))
    assert [row["second"] for row in predictions(place, "r/predict", "predict")] == ["A hen lays an egg", "It rains"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--ckpt_path", "missing.ckpt"], "missing.ckpt is no such file"),
        (["--ckpt_path", "pairs.tsv"], "pairs.tsv is a file that is no checkpoint"),
        (["--trainer.accelerator", "tpu"], "`trainer.accelerator` must be one that this machine has"),
        (["--trainer.fast_dev_run", "true"], "`trainer.fast_dev_run` must be left out"),
        (["--data.validation", "null"], "`data.validation` must name scored pairs"),
        (
            ["--trainer.max_epochs", "0"],
            "`trainer.max_epochs` must be at least 1, as the best epoch is what is kept, got 0",
        ),
        (["--trainer.max_epochs", "-1"], "`trainer.max_epochs` must say where training ends, at least 1, got -1"),
        (["--data.batch_size", "1"], "`data.batch_size` must give every batch 2 pairs at least for SGPTBiEncoder"),
        (["--data.batch_size", "47", "--data.drop_last", "false"], "got 47, which makes a batch of 1"),
        (["--data.train.limit", "1"], "got 4, which makes a batch of 1"),
        (["--trainer.max_steps", "7"], "`trainer.max_steps` must reach the first validation, at step 12, got 7"),
        (["--trainer.accelerator", "gpu"], "`trainer.accelerator` must be one that this machine has"),
        (["--trainer.strategy", "ddpp"], "did you mean ddp"),
        (["--trainer.devices", "0"], "`trainer.devices` must be a whole number of at least 1"),
    ],
)
def test_what_cannot_be_is_one_sentence_before_anything_starts(place: Path, more: list[str], said: str) -> None:
    done = run(place, command(place, "sgpt_bi", "r", *more), status=2)
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (place / "r" / "config.yaml").exists()


def faults(strategy: str, *overrides: dict[str, Any]) -> list[list[str]]:
    """Check strategies as a study does; give what is wrong with each."""
    from embedlab.training.check import check

    files = ["protocol.yaml", str(ROOT / "configs" / "strategies" / f"{strategy}.yaml")]
    wanted = {"files": files, "backbone": "backbone.yaml", "shared": {}, "seeds": [0], "places": ["--run_dir", "r"]}
    return [own["faults"] for own in check([{**wanted, "own": own} for own in overrides])]


def test_a_study_is_refused_before_stage_1_for_what_the_main_stage_would_refuse(place: Path) -> None:
    overrides = [{"trainer.max_epochs": -1}, {"trainer.max_epochs": 0}, {"data.batch_size": 1}]
    fine = {"data.batch_size": 1, "model.loss": "embedlab.losses.mse"}
    sound = {"model.pretraining.source": {"path": "pairs.tsv", "columns": {"text": "sentence1"}}}
    found = processes.call(place, faults, "freeze", *({**own, **sound} for own in [*overrides, fine]))
    assert [own[0].split(" must")[0] for own in found[:3]] == ["`trainer.max_epochs`"] * 2 + ["`data.batch_size`"]
    assert [len(own) for own in found] == [1, 1, 1, 0]


def test_layers_that_the_decoder_lacks_are_told_by_a_study_as_they_are_typed(place: Path) -> None:
    pretraining = {"model.pretraining": None}
    ((freeze,), (pooled,), (learned,)) = (
        processes.call(place, faults, name, own)[0]
        for name, own in (
            ("freeze", {"model.blocks": [1, 4], **pretraining}),
            ("pooled_decoder", {"model.layer": 9}),
            ("learned_pooling", {"model.layers": [0, 31]}),
        )
    )
    assert freeze.startswith(
        "`model.blocks` must be some of 0 to 3 and 'final' for a decoder of 3 blocks, each once, got [1, 4]"
    )
    assert pooled.startswith("`model.layer` must be 0 to 3 or 'final' for ")
    assert learned.startswith("`model.layers` must be 0 to 3 or 'final' for ")


def test_what_is_wrong_with_a_stage_names_its_option_in_a_study_and_in_a_run(place: Path) -> None:
    (place / "one.csv").write_text("text\nred\nblue\n")
    (place / "none.csv").write_text("sentence1,sentence2\n")
    option, source = "model.pretraining.source", {"path": "one.csv"}
    columns = f"`{option}.columns` must name columns of one.csv, got 'sentence1' for 'text'; it has text; name others, or give "
    columns += f"--{option}.columns null for those by default."
    wrong: dict[str, dict[str, Any]] = {
        "`model.pretraining.epochs` must be at least 1, got 0; ": {"model.pretraining.epochs": 0},
        f"`{option}.path` must be 'stsb', an existing file or a hub id, but": {f"{option}.path": "d/nothing.txt"},
        f"`{option}.path` must hold at least one row, but none.csv": {f"{option}.path": "none.csv"},
        f"`{option}.limit` must be at least 1 row, got 0; ": {f"{option}.path": "one.csv", f"{option}.limit": 0},
        columns: {f"{option}.path": "one.csv"},
    }
    for said, (found,) in zip(wrong, processes.call(place, faults, "freeze", *wrong.values()), strict=True):
        assert found.startswith(said), found
    done = run(place, command(place, "freeze", "r", f"--{option}", json.dumps(source)), status=2)
    assert done.stderr.endswith(f"error: {columns}\n")
    assert not (place / "r" / "config.yaml").exists()


def test_interrupting_a_fit_says_that_it_resumes(place: Path) -> None:
    (place / "breaker.py").write_text(
        "import signal, lightning\n"
        "class Breaker(lightning.Callback):\n"
        "    def on_train_batch_start(self, *_):\n"
        "        signal.raise_signal(signal.SIGINT)\n"
    )
    done = run(place, command(place, "sgpt_bi", "r", "--trainer.callbacks", "breaker.Breaker"), status=130)
    assert "the same command resumes" in done.stderr
    status = json.loads((place / "r" / "status.json").read_text())
    assert (status["state"], status["error"]) == ("interrupted", None)


def _without_wandb() -> None:
    """Put wandb out of reach, which this process may have imported."""

    class Block(MetaPathFinder):
        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name.partition(".")[0] == "wandb":
                raise ModuleNotFoundError(name)

    for name in [own for own in sys.modules if own.partition(".")[0] == "wandb"]:
        del sys.modules[name]
    processes.patch(
        "importlib.util:find_spec", lambda find: lambda name, *a: None if name == "wandb" else find(name, *a)
    )
    sys.meta_path.insert(0, Block())


def test_works_without_wandb(place: Path) -> None:
    """With the logger of the shipped protocol, and wandb out of reach."""
    shipped = yaml.safe_load((ROOT / "configs" / "protocol.yaml").read_text())
    own = yaml.safe_load((place / "protocol.yaml").read_text())
    own["trainer"]["logger"] = shipped["trainer"]["logger"]
    (place / "protocol.yaml").write_text(yaml.safe_dump(own))
    processes.run(place, command(place, "tfidf", "r"), 0, _without_wandb)
    assert (place / "r" / "metrics.csv").exists()
    assert not (place / "r" / "wandb").exists()


def test_a_strategy_of_the_users_own_in_an_empty_folder(place: Path) -> None:
    (place / "mine.py").write_text(
        '"""First token."""\n'
        "from embedlab.strategies.base import Embedder\n"
        "from embedlab.backbone import Backbone\n\n"
        "def first(states, tokens):\n    return states[tokens.offsets[:-1]].float()\n\n"
        "class FirstToken(Embedder):\n"
        "    def __init__(self, backbone: Backbone, power: float = 1.0):\n"
        "        super().__init__()\n        self.backbone, self.power = backbone, power\n\n"
        "    def embed(self, texts, role=None):\n"
        "        return self.backbone.pool(texts, first)[:, 0] ** self.power\n"
    )
    (place / "mine.yaml").write_text("model:\n  class_path: mine.FirstToken\n")
    script = Path(sys.executable).with_name("embedlab")
    words = ["fit", "-c", "protocol.yaml", "-c", "mine.yaml", "-c", "backbone.yaml", "--run_dir", "r"]
    run_afresh(place, [str(script), *words])
    assert json.loads((place / "r" / "result.json").read_text())["strategy"] == "FirstToken"
    assert "did you mean model.power" in run(place, [*words[:-1], "s", "--model.powr", "2"], status=2).stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data.train.path", "pears.tsv"], "did you mean pairs.tsv"),
        (["--data.train.score_range", "[0, 1]"], "pairs.tsv, line 2: `score` must lie in 0 to 1, got 4.8"),
        (["--data.train.columns", "{first: sentence1, second: sentnce2, score: score}"], "did you mean sentence2"),
        (["--data.train.columns", "{text: sentence1}"], "must give pairs or triplets to LoRABiEncoder, got texts"),
        (["--model.targets", "[q_prj]"], "got 'q_prj'; did you mean q_proj."),
        (["--model.rank", "0"], "`model.rank` must be at least 1"),
        (["--data.batch_size", "0"], "`data.batch_size` must be at least 1"),
        (["--model.backbone.name", "some/where"], "could not be fetched (HF_HUB_OFFLINE is set)"),
        (["--model.rnk", "4"], "did you mean model.rank"),
        (["--trainer.max_epoch", "4"], "max_epoch"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(place: Path, more: list[str], message: str) -> None:
    done = run(place, command(place, "lora_bi", "r", *more), status=2)
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (place / "r" / "result.json").exists()


def test_extraction_is_charged_to_every_run_that_uses_it(place: Path) -> None:
    more = ["--trainer.max_epochs", "1", "--model.pretraining.source.limit", "10", "--model.pretraining.epochs", "1"]
    seconds = []
    for seed in ("0", "1"):
        run(place, command(place, "freeze", f"r{seed}", *more, "--seed_everything", seed))
        seconds.append(json.loads((place / f"r{seed}" / "result.json").read_text())["seconds"])
    first, second = seconds
    assert first["features_found"] == 0
    # Train, validation and test texts are the same here: the test set costs no more, but its share is its own.
    assert second["features"] == pytest.approx(first["features"])
    assert second["features"] > 0
    assert second["features_found"] > 0
    assert second["score"] > 0


def test_the_epoch_that_is_reported_is_the_one_whose_weights_are_kept(tmp_path: Path) -> None:
    """The checkpoint compares in float32: what differs by less is no better, and an undefined epoch never is."""
    from embedlab.training.callbacks import Evaluation

    evaluation = Evaluation(tmp_path)
    assert evaluation._is_better(None), "the first epoch is kept, whatever it is"
    evaluation.metrics["validation"] = {}
    assert not evaluation._is_better(None)
    assert evaluation._is_better(-0.5)
    evaluation.selected = {"value": 0.8}
    assert not evaluation._is_better(0.8 + 1e-9)
    assert evaluation._is_better(0.8 + 1e-6)


def test_a_run_folder_has_one_process_at_a_time(place: Path) -> None:
    (place / "r").mkdir()
    with FileLock(place / "r" / ".lock"):
        done = run(place, command(place, "tfidf", "r"), status=2)
    assert "`run_dir` must be free, but another process is at work in r" in done.stderr
    run(place, command(place, "tfidf", "r"))


def test_what_a_run_saw_in_part_is_noted(place: Path) -> None:
    more = ["--trainer.limit_val_batches", "1", "--trainer.max_epochs", "1", "--data.train.limit", str(6 * len(ROWS))]
    run(place, command(place, "sgpt_bi", "r", *more))
    notes = json.loads((place / "r" / "result.json").read_text())["notes"]
    assert "trainer.limit_val_batches 1" in notes
    assert notes[0].startswith("selected on test data of "), "the rows of `place` are both"
    assert not [note for note in notes if "cut to" in note], "there are as many rows as the limit"


def test_a_run_without_a_best_epoch_says_so(place: Path) -> None:
    (place / "flat.tsv").write_text(
        "sentence1\tsentence2\tscore\n" + "".join(f"A hen.\tA cock.\t{i}\n" for i in range(4))
    )
    source = f"{{path: {place / 'flat.tsv'}, score_range: [0, 5]}}"
    run(place, command(place, "sgpt_bi", "r", "--data.validation", source))
    result = json.loads((place / "r" / "result.json").read_text())
    assert result["selected"] is None
    assert any("no epoch could be selected, as the predictions are constant" in note for note in result["notes"])


def test_a_cache_that_cannot_be_made_costs_no_run(place: Path) -> None:
    (place / "file").touch()
    done = processes.start(
        place, command(place, "pooled_decoder", "r"), environment={"EMBEDLAB_CACHE": str(place / "file")}
    ).wait()
    assert done.status == 0, done.stderr


def test_a_decoder_without_a_tokenizer_is_one_sentence(place: Path, own_decoder: Path) -> None:
    for path in own_decoder.glob("*token*"):
        path.unlink()
    done = run(place, command(place, "pooled_decoder", "r", "--model.backbone.name", str(own_decoder)), status=2)
    assert "`model.backbone.name` must lead to a decoder with its tokenizer" in done.stderr
