"""The first five losses of every strategy that trains, pinned: a change meant to alter no number alters none of these.

A change that is meant to alter them says so in its message, and comes with what
`python -m pytest tests/strategies/test_pinned_losses.py --pin` writes.
"""

from __future__ import annotations

import csv
import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests import processes
from tests.conftest import SCORES, TEXTS

CONFIGS = Path(__file__).parents[2] / "configs" / "strategies"
PINNED = Path(__file__).with_suffix(".yaml")
STEPS = 5
SHIFTED = [*TEXTS[3:], *TEXTS[:3]]
ROWS = {
    "pairs": ["sentence1\tsentence2\tscore", *map("{}\t{}\t{}".format, TEXTS, SHIFTED, SCORES)],
    "triplets": ["anchor\tpositive\tnegative", *map("{}\t{}\t{}".format, TEXTS, SHIFTED, [*TEXTS[5:], *TEXTS[:5]])],
}


def cases() -> list[tuple[str, str, str]]:
    """Return strategy file, decoder and training data of every run."""
    found, kinds = [], set()
    for path in sorted(CONFIGS.glob("*.yaml")):
        module, _, name = yaml.safe_load(path.read_text())["model"]["class_path"].rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        if kind in kinds:  # another configuration of it
            continue
        kinds.add(kind)
        names = {own.__name__.lower() for own in getattr(kind, "learns_from", ())}
        found += [(path.stem, decoder, data) for decoder in ("gpt2", "llama") for data in ROWS if data in names]
    return found


def losses(place: Path, folder: Path, strategy: str, data: str) -> dict[str, list[float]]:
    """Do a run of five steps, and of five in each stage; return its losses by name."""
    for name, rows in ROWS.items():
        (place / f"{name}.tsv").write_text("\n".join(rows) + "\n")
    pairs = "{path: pairs.tsv}"
    words = ["fit", "-c", str(CONFIGS / f"{strategy}.yaml"), "--run_dir", "r", "--trainer.accelerator", "cpu"]
    words += ["--model.backbone.name", str(folder), "--model.backbone.dtype", "float32"]
    words += ["--data.train", f"{{path: {data}.tsv}}", "--data.validation", pairs, "--data.test", f"{{own: {pairs}}}"]
    words += ["--data.batch_size", "4", "--trainer.max_epochs", "3", "--trainer.max_steps", str(STEPS)]
    words += ["--trainer.check_val_every_n_epoch", "1", "--trainer.log_every_n_steps", "1"]
    words += ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", "."]
    words += ["--trainer.logger.name", "", "--trainer.logger.version", ""]
    if strategy.startswith("freeze"):
        words += ["--model.pretraining.source", "{path: pairs.tsv, columns: {text: [sentence1, sentence2]}}"]
        words += ["--model.pretraining.epochs", "5", "--model.pretraining.batch_size", "8"]
    if (
        strategy == "learned_pooling"
    ):  # of eight texts there are seven components; others are rounding, another on each processor
        words += ["--model.size", "4"]
    processes.run(place, words)
    found: dict[str, list[float]] = {}
    for file in sorted((place / "r").rglob("metrics.csv")):
        for row in csv.DictReader(file.open()):
            for name, value in row.items():
                if name.endswith("/loss") and value:
                    found.setdefault(name, []).append(round(float(value), 6))
    return found


@pytest.mark.parametrize(("strategy", "decoder", "data"), cases())
def test_the_first_losses_are_the_pinned_ones(
    tmp_path: Path,
    decoder_folder: Callable[[str], Path],
    request: pytest.FixtureRequest,
    strategy: str,
    decoder: str,
    data: str,
) -> None:
    found = losses(tmp_path, decoder_folder(decoder), strategy, data)
    assert all(len(values) == STEPS for values in found.values())
    assert len(found) == (2 if strategy.startswith("freeze") else 1)
    pinned = yaml.safe_load(PINNED.read_text()) if PINNED.exists() else {}
    key = f"{strategy}, {decoder}, {data}"
    if request.config.getoption("--pin"):
        PINNED.write_text(yaml.safe_dump({**pinned, key: found}, default_flow_style=None, width=120))
        return
    assert found == {name: pytest.approx(values, rel=1e-4, abs=1e-4) for name, values in pinned[key].items()}
