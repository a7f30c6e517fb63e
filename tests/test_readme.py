"""Every command of the README does what it says.

A command is what begins with `embedlab`, `make` or `pip` in an indented block or between backticks; what begins with
`--` between backticks is put behind a run. Each must stand in one of the tables below, which say what is run in its
place where the thing itself would take long, and why.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from embedlab import cli
from tests import processes, test_packaging
from tests.studies import Judge

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PROGRAM = re.compile(r"(?:\.venv/bin/)?(?:embedlab|make|pip|python)\b")
# What is a command wherever it stands, in a comment or a sentence too.
UNMISTAKABLE = re.compile(
    rf"embedlab (?:{'|'.join(cli.COMMANDS)})\b|make (?:demo|test|setup|slow|lint)\b|pip install\b"
)


@dataclass(frozen=True)
class Entry:
    """What is run for a command of the README, and what must come of it.

    Attributes:
        shows: What its output must hold.
        add: Put behind it.
        instead: Word of the README to what takes its place.
        why: The reason for either.
        writes: Name of the file it must have written.
    """

    shows: str = ""
    add: str = ""
    instead: dict[str, str] = field(default_factory=dict)
    why: str = ""
    writes: str | None = None


ROWS = "{path: stsb, split: test, limit: 8}"
SMALL = (
    "--model.backbone.name DECODER --trainer.logger false --data.train.limit 8 --data.validation.limit 8 "
    f"--data.test '{{stsb: {ROWS}}}'"
)
HUB = "openai-community/gpt2-medium"

USED = "runs/single/Tfidf/seed-0"

# DECODER is the folder of a tiny random decoder.
COMMANDS = {
    "make demo": Entry("embedlab compare", "-nB", why="the demonstration takes minutes; shown, not done"),
    "make test": Entry("pytest", "-nB", why="these tests would start themselves; shown, not done"),
    'make demo TORCH="--index-url https://download.pytorch.org/whl/cpu"': Entry(
        "--index-url https://download.pytorch.org/whl/cpu torch==", "-nB", why="as above"
    ),
    f".venv/bin/embedlab compare demo --model.backbone.name {HUB} --runs runs-gpt2": Entry(
        "in runs-gpt2/demo, 0 finished, 6 to run",
        "--dry-run",
        {HUB: "DECODER"},
        "the decoder comes from the hub, and takes hours",
    ),
    "embedlab configs stsb > study.yaml": Entry(writes="study.yaml"),
    "embedlab fit -c protocol -c strategies/lora_bi -c backbones/smollm2-135m": Entry(
        "test/stsb: Spearman", SMALL, why="a tiny decoder and few rows take seconds"
    ),
    "embedlab compare stsb --seeds 0 1 2": Entry(
        "18 to run",
        "--dry-run --model.backbone.name DECODER",
        why="the study takes hours, and converting the real decoder half a minute",
    ),
    "embedlab report runs --markdown table.md": Entry("Tfidf", writes="table.md"),
    "embedlab report runs --against lora": Entry("difference to Tfidf", "", {"lora": "Tfidf"}, "a run that is there"),
    "embedlab report runs --leakage": Entry("scores apart by overlap with the training rows"),
    "embedlab leakage my-train.csv my-test.csv": Entry(
        "a text shared", "", {"my-train.csv": "docs.jsonl", "my-test.csv": "pairs.csv"}, "files that are there"
    ),
    "embedlab predict -c RUN/config.yaml --data.predict.path my.csv": Entry(
        "predictions: ", "--data.predict.limit 8", {"RUN/config.yaml": "config.yaml", "my.csv": "stsb"}, "a few rows"
    ),
    "embedlab ls": Entry("Tfidf"),
    "embedlab encode RUN docs.jsonl -o vectors.npy": Entry(
        "4 vectors: vectors.npy", "", {"RUN": USED}, "a run that is there", "vectors.npy"
    ),
    "embedlab score RUN pairs.csv -o scores.csv": Entry(
        "2 scores: scores.csv", "", {"RUN": USED}, "a run that is there", "scores.csv"
    ),
    'embedlab search RUN --corpus docs.jsonl "how do planes fly" --top-k 5': Entry(
        "planes fly by their wings", "", {"RUN": USED}, "a run that is there"
    ),
    "embedlab evaluate RUN --retrieval scifact": Entry("1.0000", "", {"RUN": USED}, "a run that is there"),
    "embedlab evaluate bm25 --retrieval scifact --rerank RUN --top-k 100": Entry(
        "./used over bm25", "", {"RUN": "./used"}, "a run that is there"
    ),
    "embedlab errors RUN --markdown errors.md": Entry(
        "What changes a score", "", {"RUN": USED}, "a run that is there", "errors.md"
    ),
    "embedlab mine scifact -o triplets.jsonl": Entry("1 triplets: triplets.jsonl", writes="triplets.jsonl"),
    "embedlab export RUN my-embedder": Entry(
        "sentence-transformers: my-embedder", "", {"RUN": "./used"}, "a run that is there", "my-embedder/modules.json"
    ),
    "embedlab probe smollm2-135m -o probed": Entry(
        "tables and figures: probed",
        "--limit 8 --statistics 20 --bottleneck 4 --autoencoders 1 --poolings last",
        {"smollm2-135m": "DECODER"},
        "a tiny decoder and few rows take seconds",
        "probed/correlations.svg",
    ),
    "embedlab features ls": Entry(" texts, "),
    "embedlab configs strategies/freeze > own.yaml": Entry(writes="own.yaml"),
    "embedlab fit -c config.yaml --run_dir NEW": Entry("run folder: NEW", writes="NEW/result.json"),
    "embedlab compare --help": Entry("KEY=VALUE"),
    "embedlab fit -c protocol -c mine.yaml -c backbones/smollm2-135m": Entry(
        "test/stsb: Spearman", SMALL, why="as for lora_bi"
    ),
}

# Done elsewhere: by the test that is named.
ELSEWHERE = {"pip install .": test_packaging.test_an_installed_wheel_finds_what_ships_in_an_empty_folder}

# Options of `fit`, and what the configuration shows then.
OPTIONS = {
    "--print_config": "class_path: embedlab.strategies.lora_bi.LoRABiEncoder",
    "--model.rank 8": "rank: 8",
    "--model.pooling embedlab.pooling.mean": "pooling: embedlab.pooling.mean",
    "--model.pooling mine.first": "pooling: mine.first",
    "--data.train.path my.tsv": "path: my.tsv",
    "--trainer.strategy ddp --trainer.devices 2": "strategy: ddp\n  devices: '2'\n",
    "--trainer.logger.offline false": "offline: false",
}
OF_PROBE = ("--run",)  # likewise
OF_COMPARE = ("--jobs", "--only", "--seeds", "--dry-run", "--rerun-older")  # which its help must list


def blocks(text: str) -> list[str]:
    """Give the indented blocks, unindented."""
    found = re.findall(r"(?:^(?: {4}.*)?\n)+", text, re.MULTILINE)
    return [re.sub("^ {4}", "", own, flags=re.MULTILINE).strip("\n") for own in found if own.strip()]


def commands(text: str) -> list[str]:
    """Give the commands and options of a text.

    Raises:
        AssertionError: If a command stands where this does not look: in a sentence, or in a comment.
    """
    pieces, left = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)], []
    for line in re.sub(r"`[^`]+`", "", text).splitlines():
        typed, comment, rest = re.fullmatch(r"(.*?)((?:^|\s)# |$)(.*)", line.strip()).groups()
        is_code = line.startswith("    ") and PROGRAM.match(typed)
        pieces += [typed.strip()] if is_code else []
        left.append(comment + rest if is_code else line)
    assert not (stray := UNMISTAKABLE.search("\n".join(left))), stray
    found = [own for own in pieces if own.startswith("--") or (PROGRAM.match(own) and " " in own)]
    return list(dict.fromkeys(found))


def test_every_command_stands_in_a_table_and_every_entry_in_the_readme() -> None:
    assert set(commands(README)) == {*COMMANDS, *ELSEWHERE, *OPTIONS, *OF_COMPARE, *OF_PROBE}
    assert all(bool(entry.why) == bool(entry.add or entry.instead) for entry in COMMANDS.values())


@pytest.mark.parametrize(
    "text",
    [
        "    embedlab fit -c new\n",
        "Say `embedlab report\nnew`.\n",
        "    .venv/bin/embedlab new\n",
        "    make new    # which is new\n",
        "1. Say:\n\n       pip new\n",
        "Add `--new 3`.\n",
    ],
)
def test_a_new_command_is_noticed(text: str) -> None:
    (new,) = set(commands(README + text)) - set(commands(README))
    assert "new" in new


@pytest.mark.parametrize(
    "text", ["Say embedlab fit -c new.\n", "    x: 1  # by embedlab fit -c new\n", "First make test.\n"]
)
def test_a_command_where_none_is_looked_for_is_noticed(text: str) -> None:
    with pytest.raises(AssertionError):
        commands(README + text)


def _written(text: str, folder: Path) -> set[str]:
    """Write the files that a text shows into a folder; return their names."""
    for block in blocks(text):
        for part in re.split(r"\n\n(?=# \w+\.\w+\n)", block):
            if name := re.match(r"# (\w+\.\w+)\n", part):
                (folder / name[1]).write_text(part.partition("\n\nembedlab ")[0] + "\n")
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, decoder_folder: Callable[[str], Path]) -> Path:
    """A user's folder: the README's own strategy, and two finished runs."""
    folder = tmp_path_factory.mktemp("readme")
    assert _written(README, folder) == {"mine.py", "mine.yaml"}
    words = shlex.split(SMALL.partition("DECODER ")[2])
    processes.run(folder, ["fit", "-c", "protocol", "-c", "tfidf", *words])
    shutil.copy(folder / USED / "config.yaml", folder)
    words = shlex.split(f"fit -c protocol -c strategies/lora_bi -c backbones/smollm2-135m {SMALL} --run_dir used")
    processes.run(folder, [word.replace("DECODER", str(decoder_folder("llama"))) for word in words])
    texts = ["birds sing", "planes fly by their wings", "dogs bark", "birds fly too"]
    (folder / "docs.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (folder / "scifact" / "qrels").mkdir(parents=True)
    (folder / "scifact" / "corpus.jsonl").write_text(
        "\n".join(json.dumps({"_id": f"d{n}", "title": "", "text": text}) for n, text in enumerate(texts))
    )
    (folder / "scifact" / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "how planes fly"}))
    for split in ("train", "test"):
        (folder / "scifact" / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\nq\td1\t1\n")
    (folder / "pairs.csv").write_text("sentence1,sentence2\nbirds sing,dogs bark\ndogs bark,dogs\n")
    return folder


def _judged_here() -> None:
    """Let a study be checked by the process that is asked for it, which is warmed."""
    processes.patch(
        "embedlab.study.compare:main", lambda main: partial(main, server=lambda: nullcontext(Judge(Path())))
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_does_what_it_says(command: str, place: Path, decoder_folder: Callable[[str], Path]) -> None:
    entry = COMMANDS[command]
    typed = [entry.instead.get(word, word) for word in shlex.split(command)] + shlex.split(entry.add)
    program, *words = [word.replace("DECODER", str(decoder_folder("llama"))) for word in typed]
    if program == "make":
        done = subprocess.run([program, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    else:
        target = words.pop() if ">" in words else None
        words = [word for word in words if word != ">"]
        done = processes.run(place, words, 0, _judged_here if "--dry-run" in words else None)
        if target is not None:
            (place / target).write_text(done.stdout)
    assert entry.shows in done.stdout
    if entry.writes is not None:
        assert (place / entry.writes).stat().st_size
        assert not entry.writes.endswith(".yaml") or yaml.safe_load((place / entry.writes).read_text())


def _used(code: str) -> dict[str, Any]:
    """Run the README's lines; give what they name."""
    names: dict[str, Any] = {}
    exec(code, names)
    return {name: names[name].tolist() for name in ("vectors", "scores")} | {"best": names["best"]}


def test_a_run_is_used_as_it_says(place: Path, decoder_folder: Callable[[str], Path]) -> None:
    decoder = str(decoder_folder("llama"))
    row = pq.read_table(place / "used" / "predictions" / "test-stsb.parquet").to_pylist()[0]
    (code,) = [own for own in blocks(README) if own.startswith("import embedlab")]
    changes = {'"smollm2-135m", layer=12': f"{decoder!r}, layer=1", '"RUN"': '"./used"'}
    for side, text in (("first", "a text"), ("second", "another")):
        code = code.replace(f'"{text}"', repr(row[side]))
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new, 1)
    found = processes.call(place, _used, code)
    first, second = torch.tensor(found["vectors"])
    assert torch.cosine_similarity(first, second, dim=0).item() == pytest.approx(row["score"], abs=1e-3)
    assert found["scores"] == [pytest.approx(row["score"], abs=1e-3)]
    assert found["best"][0]["text"] in ("a document", row["second"])


def test_the_strategy_of_contributing_learns(tmp_path: Path, decoder_folder: Callable[[str], Path]) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert _written(text, tmp_path) == {"mapped.py", "mapped.yaml"}
    (command,) = [own for own in re.findall(r"`(embedlab fit [^`]+)`", " ".join(text.split())) if "mapped" in own]
    words = shlex.split(f"{command} {SMALL} --run_dir run".replace("DECODER", str(decoder_folder("llama"))))
    processes.run(tmp_path, words[1:])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    width = result["backbone"]["width"]
    assert result["parameters"]["trainable"] == 128 * width + 128
    assert result["selected"]["epoch"] >= 0
    learned = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert learned["map.weight"].abs().max() > width**-0.5, "none is drawn that large"


OWN = "--model.pooling mine.first"  # replaces the other pooling, so it takes a turn of its own


@pytest.mark.parametrize(
    "options", [[own for own in OPTIONS if own != OWN], [OWN, "--print_config"]], ids=["all", "own"]
)
def test_options_are_taken(options: list[str], place: Path) -> None:
    words = ["fit", "-c", "protocol", "-c", "strategies/lora_bi", "-c", "backbones/smollm2-135m"]
    shown = processes.run(place, [*words, *(word for option in options for word in option.split())]).stdout
    assert [own for own in options if OPTIONS[own] not in shown] == []


def test_options_of_a_probe_are_in_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["probe", "--help"])
    shown = capsys.readouterr().out
    assert all(f"  {option} " in shown for option in OF_PROBE)


def test_weights_and_biases_is_turned_on_beside_the_other_logger(place: Path) -> None:
    (option,) = [own for own in OPTIONS if "offline" in own]
    words = ["fit", "-c", "protocol", "-c", "tfidf", *option.split(), "--print_config"]
    files, wandb = yaml.safe_load(processes.run(place, words).stdout)["trainer"]["logger"]
    assert files["class_path"].endswith(".CSVLogger")
    assert wandb["class_path"].endswith(".WandbLogger")
    assert wandb["init_args"]["offline"] is False
    assert yaml.safe_load((ROOT / "configs" / "protocol.yaml").read_text())["trainer"]["logger"][-1]["init_args"][
        "offline"
    ]


def test_options_of_a_study_are_in_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["compare", "--help"])
    shown = capsys.readouterr().out
    assert all(f"  {option} " in shown for option in OF_COMPARE)
