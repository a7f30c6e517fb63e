"""A run survives: killed at any named point and started again, or done by two processes, it is the same run."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tests import processes

CONFIGS = Path(__file__).parents[1] / "configs" / "strategies"
STRATEGIES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))

# Point of a run: what is called there, the number of the call that dies, and whether it is still done.
POINTS: dict[str, tuple[str, int, bool]] = {
    "extraction": ("embedlab.backbone.features:Features._compute", 1, False),
    "extraction of test texts": ("embedlab.backbone.features:Features._compute", 2, True),
    "stage": ("embedlab.strategies.freeze:Freeze.reconstruction", 8, False),
    "stage written": ("embedlab.training.stages:runs.write_json_atomic", 1, False),
    "training": ("embedlab.strategies.base:Trainable.training_step", 20, False),
    "checkpoint": ("fsspec.implementations.local:LocalFileOpener.commit", 2, False),
    "epoch end": ("embedlab.training.callbacks.resume:Resumable.on_train_epoch_end", 2, False),
    "epoch end, kept": ("embedlab.training.callbacks.resume:Resumable.on_train_epoch_end", 2, True),
    "validation": ("embedlab.strategies.base:EmbeddingStrategy.validation_step", 2, False),
    "training over": ("embedlab.training.callbacks.resume:Resumable.on_train_end", 1, True),
    "testing": ("embedlab.strategies.base:EmbeddingStrategy.test_step", 2, False),
    "predictions": ("embedlab.training.callbacks.evaluation:os.replace", 2, False),
    "result": ("embedlab.runs:write_result", 1, False),
    "status": ("embedlab.runs:write_result", 1, True),
}
# Where only some strategies pass by.
LEARNS = {"sgpt_bi", "lora_bi", "learned_pooling"}
TRAINED = {"training", "checkpoint", "epoch end", "epoch end, kept", "training over"}
KEEPS_FEATURES = {"extraction", "extraction of test texts", "stage", "stage written"}


def points(strategy: str) -> list[str]:
    """Return the points that a strategy's run passes."""
    if strategy.startswith("freeze"):
        return list(POINTS)
    left = set(POINTS) - KEEPS_FEATURES
    if strategy in ("pooled_decoder", "learned_pooling"):
        left |= {"extraction", "extraction of test texts"}
    return [own for own in POINTS if own in (left if strategy in LEARNS else left - TRAINED)]


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory,
    decoder_folder: Callable[[str], Path],
    encoder_folder: Path,
) -> Path:
    """Return a folder with data and a protocol for tiny runs of three epochs of twelve steps."""
    place = tmp_path_factory.mktemp("survival")
    (place / "encoder").symlink_to(encoder_folder)
    nouns = ["man", "woman", "child", "dog", "cat", "horse", "bird", "market", "train"]
    rows = [
        f"A {a} sees a {b}.\tThe {b} is seen by some {a}s\t{(3 * i + j) % 51 / 10}\n"
        for i, a in enumerate(nouns)
        for j, b in enumerate(nouns)
        if i != j
    ][:51]
    (place / "pairs.tsv").write_text("sentence1\tsentence2\tscore\n" + "".join(rows))
    (place / "test.tsv").write_text("sentence1\tsentence2\tscore\n" + "".join(rows).replace(" some ", " a few "))
    source = {"path": "pairs.tsv", "score_range": [0, 5]}
    test = {**source, "path": "test.tsv"}
    protocol = {
        "data": {
            "train": source,
            "validation": {**source, "limit": 21},
            "test": {"own": test, "half": {**test, "limit": 25}},
            "batch_size": 4,
            "eval_batch_size": 8,
        },
        "trainer": {"max_epochs": 3, "logger": False, "enable_model_summary": False, "accelerator": "cpu"},
    }
    (place / "protocol.yaml").write_text(yaml.safe_dump(protocol))
    backbone = {"model": {"init_args": {"backbone": {"name": str(decoder_folder("llama")), "dtype": "float32"}}}}
    (place / "backbone.yaml").write_text(yaml.safe_dump(backbone))
    small = {"trainer": {"max_epochs": 3, "check_val_every_n_epoch": 1}, "data": {"batch_size": 4}}
    (place / "small.yaml").write_text(yaml.safe_dump(small))
    return place


def words(strategy: str, run: str, *more: str, subcommand: str = "fit") -> list[str]:
    files = ["protocol.yaml", str(CONFIGS / f"{strategy}.yaml"), "small.yaml"]
    files += [] if strategy in ("sentence_transformer", "tfidf") else ["backbone.yaml"]
    if strategy == "sentence_transformer":
        more = (*more, "--model.model", "encoder", "--model.revision", "null")
    if strategy.startswith("freeze"):
        more = (*more, "--model.network.widths", "[8, 16]", "--model.pretraining.source.path", "pairs.tsv")
        more = (*more, "--model.pretraining.epochs", "1", "--model.pretraining.batch_size", "8")
    return [subcommand, *(word for file in files for word in ("-c", file)), "--run_dir", run, *more]


def often(steps: int = 5) -> None:
    """Keep a whole state every few steps."""
    from embedlab.training.callbacks import resume

    resume.SAVE_EVERY = steps


def best_in_the_middle(*death: Any) -> None:
    """Keep states at the end of epochs too; let the second epoch be the best; die, if told where."""
    from embedlab.training.callbacks import Evaluation

    often(6)
    end, correlate = Evaluation.on_validation_epoch_end, Evaluation._correlate
    epoch: list[int] = []

    def watched(self: Evaluation, trainer: Any, module: Any) -> None:
        epoch.append(trainer.current_epoch)
        end(self, trainer, module)
        epoch.clear()

    def judged(self: Evaluation, columns: dict[str, Any]) -> dict[str, Any]:
        found = correlate(self, columns)
        return {**found, "spearman": 0.9 if epoch == [1] else 0.1} if epoch else found

    Evaluation.on_validation_epoch_end, Evaluation._correlate = watched, judged  # type: ignore[method-assign]
    if death:
        processes.kill_at(*death)


def deadly(target: str, number: int, after: bool) -> None:
    """Keep states often, and die."""
    often()
    processes.kill_at(target, number, after)


def result(place: Path, run: str) -> dict[str, Any]:
    """Return what a run says of itself, less what may differ: seconds (kept in the shards too), memory, places."""
    found = json.loads((place / run / "result.json").read_text())
    for name in (
        "seconds",
        "features",
        "texts_per_second",
        "peak_memory_bytes",
        "feature_bytes",
        "git_commit",
        "versions",
    ):
        del found[name]
    return found


def predictions(place: Path, run: str) -> dict[str, list[dict[str, Any]]]:
    return {path.stem: pq.read_table(path).to_pylist() for path in sorted((place / run / "predictions").iterdir())}


@pytest.fixture(scope="module")
def whole(place: Path) -> Callable[[str], str]:
    """Return a function that does an undisturbed run of a strategy, once, and names its folder."""
    done: set[str] = set()

    def make(strategy: str) -> str:
        if strategy not in done:
            processes.run(place, words(strategy, f"whole-{strategy}"), 0, often)
            done.add(strategy)
        return f"whole-{strategy}"

    return make


QUICK_IN_TWO = {"freeze", "lora_bi"}  # one that learns from features, one that tunes
QUICK = {
    ("freeze", "stage"),
    ("freeze", "testing"),
    ("sgpt_bi", "training"),
    ("sgpt_bi", "validation"),
    ("sgpt_bi", "epoch end, kept"),
    ("tfidf", "result"),
}


@pytest.mark.parametrize(
    ("strategy", "point"),
    [
        pytest.param(own, point, marks=[] if (own, point) in QUICK else pytest.mark.slow)
        for own in STRATEGIES
        for point in points(own)
    ],
)
def test_a_killed_run_is_the_uninterrupted_one(
    place: Path, whole: Callable[[str], str], strategy: str, point: str
) -> None:
    run = f"{strategy}-{point}".replace(" ", "-")
    expected = whole(strategy)
    cache = {"EMBEDLAB_CACHE": str(place / f"cache-of-{run}")} if point.startswith("extraction") else {}
    shutil.rmtree(place / "cache" / "stages", ignore_errors=True)  # of the other run, or this one would find it
    target, *when = POINTS[point]
    if strategy == "learned_pooling":
        target = target.replace("features:Features._compute", "token_states:TokenStates._compute")
    killed = processes.start(place, words(strategy, run), deadly, target, *when, environment=cache).wait()
    assert killed.status == -signal.SIGKILL, f"it passed {point} alive\n{killed.stdout}\n{killed.stderr}"
    done = (place / run / "result.json").exists()
    assert done == (point == "status")
    if not done:
        again = processes.start(place, words(strategy, run), often, environment=cache).wait()
        assert again.status == 0, again.stderr
    assert result(place, run) == result(place, expected)
    for name, rows in predictions(place, run).items():
        for own, other in zip(rows, predictions(place, expected)[name], strict=True):
            assert own == {**other, "score": pytest.approx(other["score"], abs=0 if not cache else 1e-6)}


def test_runs_that_share_a_stage_train_it_once(place: Path) -> None:
    """With the same result, whoever trained it: what comes after may differ in anything."""
    mse = ("--model.loss", "embedlab.losses.mse", "--model.network.head.layers", "1", "--model.network.head.width", "8")
    shared, own = ({"EMBEDLAB_CACHE": str(place / name)} for name in ("cache-shared", "cache-own"))

    def run(name: str, cache: dict[str, str], *more: str) -> str:
        done = processes.start(place, words("freeze", name, *more), environment=cache).wait()
        assert done.status == 0, done.stderr
        return (place / name / "log.txt").read_text()

    told = "stage autoencoders was trained by another run"
    assert told not in run("first", shared)
    (done,) = (place / "cache-shared" / "stages").rglob("done.json")
    counts = json.loads(done.read_text())
    assert "features of autoencoders" in counts["charges"]
    counts["charges"]["features of autoencoders"][0] += 1000.0
    done.write_text(json.dumps(counts))
    assert told in run("second", shared, *mse)
    assert told not in run("alone", own, *mse)
    assert predictions(place, "second") == predictions(place, "alone")
    assert predictions(place, "second") != predictions(place, "first")
    first, second = (json.loads((place / name / "result.json").read_text()) for name in ("first", "second"))
    one, other = first["seconds"], second["seconds"]
    assert other["stages"] == one["stages"], "each is charged what it took"
    assert one["features_found"] < 1000 < other["features"]
    assert other["features_found"] > 1000, "whoever computed the features of the stage, this run has found them"
    assert second["held_out"] == first["held_out"], "whoever trained it, how well it does is told"
    assert 0 < first["held_out"]["autoencoders"]["unexplained"] < 100
    assert told in run("fewer", shared, "--data.validation.limit", "5")
    fewer = json.loads((place / "fewer" / "result.json").read_text())
    assert fewer["held_out"] == {"autoencoders": {}}, "that is of other validation texts"
    for more in (("--seed_everything", "1"), ("--model.network.dropout", "0.2")):
        assert told not in run(f"other-{more[1]}", shared, *more)
    for body in ("x.relu()", "(3 * x).tanh()"):  # an edited class of the user's own is another
        (place / "act.py").write_text(
            f"from torch import nn\nclass Act(nn.Module):\n    def forward(self, x):\n        return {body}\n"
        )
        assert told not in run(f"own-{len(body)}", shared, "--model.network.activation", "act.Act")
    (weights,) = (path for path in (place / "cache-own" / "stages").rglob("weights.ckpt"))
    weights.write_bytes(weights.read_bytes()[:100])
    assert "is damaged, so it is trained again" in run("damaged", own, *mse)
    assert predictions(place, "damaged") == predictions(place, "alone")


def test_a_stage_on_one_text_is_warned_of_and_on_none_is_refused(place: Path) -> None:
    (place / "one.tsv").write_text("sentence1\tsentence2\nBirds sing.\tBirds sing.\n")
    (place / "none.tsv").write_text("sentence1\tsentence2\n")
    source = "--model.pretraining.source.path"
    assert processes.start(place, [*words("freeze", "one"), source, "one.tsv"]).wait().status == 0
    log = (place / "one" / "log.txt").read_text()
    told = "stage autoencoders learned from 1 text only, fewer than its batch of 8"
    assert f"note: {told}\n" in log
    assert told in json.loads((place / "one" / "result.json").read_text())["notes"]
    again = [*words("freeze", "found"), source, "one.tsv", "--model.loss", "embedlab.losses.mse"]
    assert "was trained by another run" in processes.run(place, again).stderr
    assert told in json.loads((place / "found" / "result.json").read_text())["notes"]
    single = processes.run(
        place, [*words("freeze", "single"), source, "one.tsv", "--model.pretraining.batch_size", "1"]
    )
    assert "note: stage autoencoders learned from 1 text only\n" in single.stderr
    refused = processes.start(place, [*words("freeze", "none"), source, "none.tsv"]).wait()
    assert refused.status == 2
    assert "must hold at least one row, but none.tsv has none" in refused.stderr


@pytest.mark.parametrize(
    "strategy", [own if own in QUICK_IN_TWO else pytest.param(own, marks=pytest.mark.slow) for own in STRATEGIES]
)
def test_two_processes_do_what_one_does(place: Path, strategy: str) -> None:
    # Dropout differs between one process and two; without it nothing may.
    more = ["--model.network.dropout", "0.0"] if strategy.startswith("freeze") else []
    more += ["--model.dropout", "0.0"] if strategy == "learned_pooling" else []
    processes.run(place, words(strategy, f"one-{strategy}", *more), 0)
    processes.run_two(place, words(strategy, f"two-{strategy}", *more))
    one, two = result(place, f"one-{strategy}"), result(place, f"two-{strategy}")
    assert two["processes"] == 2
    assert two["train_tokens"] == one["train_tokens"]
    for name, metric in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(metric, abs=1e-4), name
    for name, rows in predictions(place, f"two-{strategy}").items():
        expected = predictions(place, f"one-{strategy}")[name]
        assert [row["id"] for row in rows] == [row["id"] for row in expected], "each pair is scored once"
        # Of FREEZE's scores the loss leaves a common shift open: rounding decides it, and Adam magnifies that.
        near = 1e-3 if strategy.startswith("freeze") else 1e-4
        assert [row["score"] for row in rows] == pytest.approx([row["score"] for row in expected], abs=near)


@pytest.mark.parametrize(
    ("more", "target", "after"),
    [
        # The end of an epoch is kept (12 steps, kept every 6); the best weights must be by then.
        (["--trainer.max_epochs", "3"], "embedlab.training.callbacks.resume:Resumable.on_train_epoch_end", True),
        # A training that ends in mid-epoch by its steps.
        (["--trainer.max_steps", "30"], "embedlab.strategies.base:EmbeddingStrategy.validation_step", False),
        (
            ["--trainer.max_epochs", "-1", "--trainer.max_steps", "30"],
            "embedlab.strategies.sgpt_bi:SGPTBiEncoder.loss",
            False,
        ),
    ],
    ids=["kept end of an epoch", "steps", "steps alone"],
)
def test_a_killed_run_ends_where_it_would_have(place: Path, more: list[str], target: str, after: bool) -> None:
    names = [own + "-".join(more[:2]) for own in ("whole", "killed")]
    processes.run(place, words("sgpt_bi", names[0], *more), 0, best_in_the_middle)
    number = {"on_train_epoch_end": 2, "validation_step": 5, "loss": 20}[target.rpartition(".")[2]]
    processes.run(place, words("sgpt_bi", names[1], *more), -signal.SIGKILL, best_in_the_middle, target, number, after)
    processes.run(place, words("sgpt_bi", names[1], *more), 0, best_in_the_middle)
    assert result(place, names[0])["selected"]["epoch"] == 1
    assert result(place, names[1]) == result(place, names[0])
    assert predictions(place, names[1]) == predictions(place, names[0])


def full(target: str) -> None:
    """From the first call of a function on, let no file grow beyond a thousand bytes."""

    def make(function: Callable[..., Any]) -> Callable[..., Any]:
        def limited(*args: Any, **named: Any) -> Any:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            return function(*args, **named)

        return limited

    processes.patch(target, make)


@pytest.mark.parametrize(
    ("strategy", "target"),
    [
        ("tfidf", "embedlab.runs:write_result"),
        ("tfidf", "embedlab.training.cli:keep_log"),  # before its configuration is written
        ("sgpt_bi", "lightning.pytorch:Trainer.save_checkpoint"),
    ],
)
def test_a_run_out_of_room_says_so_and_resumes(
    place: Path, whole: Callable[[str], str], strategy: str, target: str
) -> None:
    run = f"full-{strategy}-{target.rpartition(':')[2]}"
    done = processes.run(place, words(strategy, run), 1, full, target)
    assert re.fullmatch(
        r"embedlab: error: .* but it cannot \(File too large\); .*resumes where it stopped\.\n", done.stderr
    ), done.stderr
    assert json.loads((place / run / "status.json").read_text())["state"] == "failed"
    assert (place / run / "config.yaml").exists() == (not target.endswith("keep_log")), "whole, or not there"
    processes.run(place, words(strategy, run), 0)
    assert result(place, run) == result(place, whole(strategy))


def test_a_run_whose_folder_was_moved_goes_on(place: Path) -> None:
    """It dies in its third epoch, the second being the best; and once more after its training."""
    processes.run(place, words("sgpt_bi", "stayed"), 0, best_in_the_middle)
    step = ("embedlab.strategies.base:Trainable.training_step", 32, False)
    processes.run(place, words("sgpt_bi", "here"), -signal.SIGKILL, best_in_the_middle, *step)
    (place / "here").rename(place / "there")
    processes.run(place, words("sgpt_bi", "there"), 0, best_in_the_middle)
    assert result(place, "there")["selected"]["epoch"] == 1
    assert result(place, "there") == result(place, "stayed")
    assert predictions(place, "there") == predictions(place, "stayed")
    (place / "there").rename(place / "elsewhere")
    (place / "elsewhere" / "result.json").unlink()
    processes.run(place, words("sgpt_bi", "elsewhere"), 0, best_in_the_middle)
    assert result(place, "elsewhere") == result(place, "stayed")


def test_a_killed_run_that_began_at_a_checkpoint_goes_on_from_its_own(place: Path, whole: Callable[[str], str]) -> None:
    """It has 24 steps to do, dies in the 20th, and would die in the 11th of those that it does again."""
    begin = ["--ckpt_path", f"{whole('sgpt_bi')}/checkpoints/last.ckpt", "--trainer.max_epochs", "5"]
    step = "embedlab.strategies.base:Trainable.training_step"
    processes.run(place, words("sgpt_bi", "begun", *begin), 0, often)
    processes.run(place, words("sgpt_bi", "killed", *begin), -signal.SIGKILL, deadly, step, 20, False)
    again = processes.run(place, words("sgpt_bi", "killed", *begin), 0, deadly, step, 11, False)
    told = "goes on from killed/checkpoints/last.ckpt, not from `ckpt_path`"
    assert told in again.stderr
    assert told in (place / "killed" / "log.txt").read_text()
    assert result(place, "killed") == result(place, "begun")
    assert result(place, "begun")["selected"]["epoch"] in (3, 4), "of what it has trained, as its best weights are"
    assert predictions(place, "killed") == predictions(place, "begun")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "point"),
    [
        (own, point)
        for own in ("freeze", "sgpt_bi")
        for point in ("stage", "training", "validation", "epoch end, kept", "testing")
        if point in points(own)
    ],
)
def test_two_killed_processes_go_on_as_the_uninterrupted_two(place: Path, strategy: str, point: str) -> None:
    """With dropout, so that each process must find its own random numbers again."""
    run, whole = f"two-{strategy}-{point}".replace(" ", "-"), f"two-whole-{strategy}"
    if not (place / whole).exists():
        processes.run_two(place, words(strategy, whole), often)
    target, number, after = POINTS[point]
    number = 1 if point in ("validation", "testing") else number  # each process has half the batches
    processes.run_two(place, words(strategy, run), deadly, target, number, after, killed=True)
    assert not (place / run / "result.json").exists()
    processes.run_two(place, words(strategy, run), often)
    assert result(place, run) == result(place, whole)
    for name, rows in predictions(place, run).items():
        scores = [row["score"] for row in predictions(place, whole)[name]]
        assert [row["score"] for row in rows] == pytest.approx(scores, abs=1e-6)
