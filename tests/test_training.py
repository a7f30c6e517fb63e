"""`embedlab fit` in processes of its own: whole runs, kills, resumes, mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

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
    words = [sys.executable, "-m", "embedlab", subcommand, "-c", "protocol.yaml", "-c", str(config)]
    words += [] if strategy == "tfidf" else ["-c", "backbone.yaml"]
    return [*words, "--run_dir", run, *more]


def environment(place: Path) -> dict[str, str]:
    return {**os.environ, "EMBEDLAB_CACHE": str(place / "cache"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def run(place: Path, words: list[str], status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words, cwd=place, env=environment(place), capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def predictions(place: Path, run: str, name: str = "test-own") -> list[dict[str, Any]]:
    return pq.read_table(place / run / "predictions" / f"{name}.parquet").to_pylist()


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
    rows = predictions(place, "r")
    assert [row["id"] for row in rows] == list(range(48))
    assert rows[0]["first"] == ROWS[0][0] + " 0"
    assert rows[0]["label"] == pytest.approx(4.8 / 5)
    assert rows[0]["genre"] == "captions"
    assert json.loads((place / "r" / "status.json").read_text())["state"] == "done"

    # The validation table is that of the epoch that was kept, and so is the test table.
    from embedlab.metrics import spearman

    kept = predictions(place, "r", "validation")
    assert spearman([r["score"] for r in kept], [r["label"] for r in kept]) == pytest.approx(
        result["selected"]["value"]
    )
    assert [r["score"] for r in kept] == pytest.approx([r["score"] for r in rows], abs=1e-6)  # the same 48 pairs

    # Its config.yaml makes the run again, elsewhere; and the checkpoint scores the same on its own.
    again = [sys.executable, "-m", "embedlab", "fit", "-c", "r/config.yaml", "--run_dir", "again"]
    run(place, again)
    assert predictions(place, "again") == rows
    tested = [sys.executable, "-m", "embedlab", "test", "-c", "r/config.yaml", "--ckpt_path", "r/checkpoints/best.ckpt"]
    run(place, tested)
    assert predictions(place, "r/test") == rows
    assert (place / "r" / "result.json").read_text() == json.dumps(result, indent=2, ensure_ascii=False) + "\n"

    # A finished run is never overwritten, and a checkpoint never meets another decoder.
    assert "holds a finished run" in run(place, [*again[:-1], "r"], status=2).stderr


def test_a_checkpoint_of_another_decoder_is_refused(place: Path, decoder_folder: Callable[[str], Path]) -> None:
    run(place, command(place, "sgpt_bi", "r", "--trainer.max_epochs", "1"))
    other = ["--ckpt_path", "r/checkpoints/best.ckpt", "--model.backbone.name", str(decoder_folder("qwen3"))]
    done = run(place, command(place, "sgpt_bi", "other", *other, subcommand="test"), status=2)
    assert "another decoder" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize("strategy", ["sgpt_bi", "freeze"])
def test_a_run_killed_in_mid_epoch_gives_the_same_predictions(place: Path, strategy: str) -> None:
    """SIGKILL once a resumable checkpoint of mid-epoch is there, start again, compare with an undisturbed run."""
    more = ["--trainer.max_epochs", "12", "--data.batch_size", "2", "--trainer.check_val_every_n_epoch", "3"]
    if strategy == "freeze":
        more += ["--model.pretraining.source.limit", "10", "--model.pretraining.epochs", "1"]
    run(place, command(place, strategy, "whole", *more))
    process = subprocess.Popen(
        command(place, strategy, "killed", *more), cwd=place, env=environment(place), stdout=subprocess.DEVNULL
    )
    last = place / "killed" / "checkpoints" / "last.ckpt"
    deadline = time.time() + 120
    while not last.exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert last.exists()
    assert not (place / "killed" / "result.json").exists(), "it was killed too late to prove anything"
    run(place, command(place, strategy, "killed", *more))
    assert predictions(place, "killed") == predictions(place, "whole")
    whole, killed = (json.loads((place / r / "result.json").read_text()) for r in ("whole", "killed"))
    assert whole["selected"] == killed["selected"]
    assert whole["metrics"] == killed["metrics"]
    assert whole["train_tokens"] == killed["train_tokens"]


@pytest.mark.parametrize("hook", ["on_validation_batch_start", "on_train_batch_start"])
def test_a_run_killed_about_the_end_of_an_epoch_validates_what_it_should(place: Path, hook: str) -> None:
    """Epochs of 50 steps, so that a whole state falls due on their last; SIGKILL in the second."""
    rows = (place / "pairs.tsv").read_text().splitlines()
    (place / "pairs.tsv").write_text("\n".join([rows[0], *rows[1:] * 3][:101]) + "\n")
    (place / "killer.py").write_text(
        "import os, signal, pathlib, lightning\n"
        "class Killer(lightning.Callback):\n"
        f"    def {hook}(self, trainer, *_):\n"
        "        mark = pathlib.Path(trainer.default_root_dir, 'killed')\n"
        "        if trainer.current_epoch == 1 and 'killed' in str(mark.parent) and not mark.exists():\n"
        "            mark.touch()\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    more = ["--trainer.max_epochs", "3", "--data.batch_size", "2", "--trainer.callbacks", "killer.Killer"]
    run(place, command(place, "sgpt_bi", "whole", *more))
    run(place, command(place, "sgpt_bi", "killed", *more), status=-signal.SIGKILL)
    assert (place / "killed" / "checkpoints" / "last.ckpt").exists()
    run(place, command(place, "sgpt_bi", "killed", *more))
    whole, killed = (json.loads((place / r / "result.json").read_text()) for r in ("whole", "killed"))
    assert whole["selected"] == killed["selected"]
    assert whole["train_tokens"] == killed["train_tokens"]
    assert predictions(place, "killed") == predictions(place, "whole")


def test_what_was_typed_beats_the_schedule_of_the_strategys_file(place: Path) -> None:
    words = command(place, "freeze_weighted_mean", "r", "--model.pretraining", "null", "--trainer.max_epochs", "1")
    run(place, [*words, "--trainer.check_val_every_n_epoch", "1"])
    config = yaml.safe_load((place / "r" / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 1
    assert config["data"]["batch_size"] == 128, "not typed, so that of the strategy's file"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--ckpt_path", "missing.ckpt"], "missing.ckpt is no such file"),
        (["--ckpt_path", "pairs.tsv"], "pairs.tsv is a file that is no checkpoint"),
        (["--trainer.accelerator", "tpu"], "`trainer` cannot be had as asked for"),
        (["--trainer.check_val_every_n_epoch", "9"], "`trainer.check_val_every_n_epoch` must be at most the 2 epochs"),
    ],
)
def test_what_cannot_be_is_one_sentence_before_anything_starts(place: Path, more: list[str], said: str) -> None:
    done = run(place, command(place, "sgpt_bi", "r", *more), status=2)
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (place / "r" / "config.yaml").exists()


def test_interrupting_a_fit_says_that_it_resumes(place: Path) -> None:
    (place / "breaker.py").write_text(
        "import os, signal, time, lightning\n"
        "class Breaker(lightning.Callback):\n"
        "    def on_train_batch_start(self, *_):\n"
        "        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored\n"
        "        os.kill(os.getpid(), signal.SIGINT); time.sleep(5)\n"
    )
    done = run(place, command(place, "sgpt_bi", "r", "--trainer.callbacks", "breaker.Breaker"), status=130)
    assert "the same command resumes" in done.stderr
    assert json.loads((place / "r" / "status.json").read_text())["error"] == "KeyboardInterrupt"


def test_works_without_wandb(place: Path) -> None:
    """With the logger of the shipped protocol, and wandb out of reach."""
    (place / "block.py").write_text(
        "import sys, importlib.abc\n"
        "class Block(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.split('.')[0] == 'wandb': raise ModuleNotFoundError(name)\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'wandb' else find(name, *a)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from embedlab.cli import main; sys.exit(main(sys.argv[1:]))\n"
    )
    shipped = yaml.safe_load((ROOT / "configs" / "protocol.yaml").read_text())
    own = yaml.safe_load((place / "protocol.yaml").read_text())
    own["trainer"]["logger"] = shipped["trainer"]["logger"]
    (place / "protocol.yaml").write_text(yaml.safe_dump(own))
    words = command(place, "tfidf", "r")
    run(place, [sys.executable, "block.py", *words[3:]])
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
        "        return self.backbone.read(texts, first)[:, 0] ** self.power\n"
    )
    (place / "mine.yaml").write_text("model:\n  class_path: mine.FirstToken\n")
    script = Path(sys.executable).with_name("embedlab")
    words = [str(script), "fit", "-c", "protocol.yaml", "-c", "mine.yaml", "-c", "backbone.yaml", "--run_dir", "r"]
    run(place, words)
    assert json.loads((place / "r" / "result.json").read_text())["strategy"] == "FirstToken"
    assert "did you mean model.power" in run(place, [*words[:-1], "s", "--model.powr", "2"], status=2).stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data.train.path", "pears.tsv"], "did you mean 'pairs.tsv'"),
        (["--data.train.score_range", "[0, 1]"], "pairs.tsv, line 2: `score` must lie in 0 to 1, got 4.8"),
        (["--data.train.columns", "{first: sentence1, second: sentnce2, score: score}"], "did you mean 'sentence2'"),
        (["--data.train.columns", "{text: sentence1}"], "must give pairs or triplets to LoRABiEncoder, got texts"),
        (["--model.targets", "[q_prj]"], "did you mean 'q_proj'"),
        (["--model.rank", "0"], "`rank` must be at least 1"),
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
