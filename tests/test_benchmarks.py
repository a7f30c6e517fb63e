"""Every benchmark runs, on next to no work, and finds what it compares to be equal."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [
    path.stem
    for path in sorted((ROOT / "benchmarks").glob("[!_]*.py"))
    if path.stem not in ("measure", "growth", "shares", "numerics", "training_memory")
    and path.stem not in ("freeze_claims", "freeze_outputs", "freeze_search", "freeze_verdicts")  # nothing is timed
]


def _run(name: str, *words: str) -> str:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--small", *words]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_compares(name: str, tmp_path: Path) -> None:
    if name == "encode" and importlib.util.find_spec("sentence_transformers") is None:
        pytest.skip("sentence-transformers is an extra: pip install 'embedlab[bench]'")
    assert "product peak" in _run(name, "--rounds", "1", "--json", str(tmp_path / "rows.json"))
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert len(rows) > 1
    assert rows[0]["times_ours"] == 1
    assert all(second > 0 for own in rows for second in own["seconds"])


@pytest.mark.slow
def test_growth_is_told_for_every_size() -> None:
    assert _run("growth").count("tokens/s") == 6


@pytest.mark.slow
def test_memory_of_training_is_told_for_every_batch() -> None:
    assert _run("training_memory").count("held before") == 7


@pytest.mark.slow
def test_shares_are_told_for_every_job(tmp_path: Path) -> None:
    assert "product peak" in _run("shares", "--json", str(tmp_path / "rows.json"))
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert len(rows) == 5
    assert all(abs(sum(own["shares"].values()) - 1) < 1e-6 and own["shares"]["products"] > 0 for own in rows)


@pytest.mark.slow
def test_numerics_are_told_for_every_fast_path() -> None:
    assert [line for line in _run("numerics").splitlines() if "float32" in line][3:] != []
