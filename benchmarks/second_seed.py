"""Run FREEZE for a first seed with an empty cache, and for a second, which finds its features: all seconds of both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import arguments, lines, peak, show
from embedlab.backbone import Backbone

# A sixth of each part of STS-B, 30 of the 150 epochs, and 5 of the 10 that we pretrain (published: 250), so that extraction has
# a larger share than in a whole run.
ROWS = {"train": 958, "validation": 250, "test": 230}


def run(folder: Path, decoder: Path, seed: int, epochs: int, rows: dict[str, int]) -> float:
    """Run FREEZE in a process of its own; return all its seconds, imports included."""
    words = ["fit", "-c", "protocol", "-c", "strategies/freeze", "--model.backbone.name", str(decoder)]
    words += ["--seed_everything", str(seed), "--run_dir", f"seed-{seed}", "--trainer.logger", "false"]
    words += ["--trainer.max_epochs", str(epochs), "--model.pretraining.epochs", str(max(1, epochs // 6))]
    words += [f"--data.{name}.limit={rows[name]}" for name in ("train", "validation")]
    words += [f"--model.pretraining.source.limit={rows['train']}"]
    words += ["--data.test", json.dumps({"stsb": {"path": "stsb", "split": "test", "limit": rows["test"]}})]
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "embedlab", *words],
        cwd=folder,
        env={**os.environ, "EMBEDLAB_CACHE": str(folder / "cache")},
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - begun


def main() -> None:
    """Print the table."""
    options = arguments(__doc__)
    decoder = Backbone(options.backbone).files.folder
    epochs, rows = (10, dict.fromkeys(ROWS, 20)) if options.small else (30, ROWS)
    first, second = [], []
    for _ in range(1 if options.small else options.rounds):
        with TemporaryDirectory() as place:
            first.append(run(Path(place), decoder, 0, epochs, rows))
            second.append(run(Path(place), decoder, 1, epochs, rows))
    notes = {"second seed": f"{epochs} epochs of {rows['train']} pairs"}
    ways = {"second seed": second, "first seed, empty cache": first}
    show(lines("FREEZE, all seconds", ways, notes), options.json, peak())


if __name__ == "__main__":
    main()
