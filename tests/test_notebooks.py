"""Notebooks run from top to bottom."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def test_there_is_one() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["add_a_strategy"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_stripped(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


def test_a_strategy_is_added(
    monkeypatch: pytest.MonkeyPatch, decoder_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    monkeypatch.setenv("EMBEDLAB_NOTEBOOK_DECODER", str(decoder_folder("llama")))
    monkeypatch.setenv("EMBEDLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the notebook puts its folder
    notebook = nbformat.read(NOTEBOOKS[0], 4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOKS[0].parent)}}).execute()
    launched, shown = ("".join(out.get("text", "") for out in cell.outputs) for cell in notebook.cells[-3::2])
    assert launched.count("test/stsb: Spearman") == 3
    assert re.search(r"^Echo: Spearman -?\d+\.\d\d$", shown, re.MULTILINE)
    assert all(label in shown for label in ("echo", "mean", "tfidf"))
    assert len(list(tmp_path.glob("my-strategies-*"))) == 1, "nothing is left elsewhere"
