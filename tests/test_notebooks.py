"""Notebooks run from top to bottom."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests import processes

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def test_which_there_are() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["add_a_strategy", "probe_a_decoder", "search_a_corpus"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_stripped(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


# Run in the kernel before the notebook: what it starts as `python -m embedlab` is started in a warmed process instead.
# All else, and whatever `subprocess.run` is asked for that this does not know, stays as it is.
WARMED = """
import subprocess, sys
from multiprocessing.connection import Client
_cold = subprocess.run
def _run(words, *, cwd=None, capture_output=False, text=False, check=False, **other):
    if words[:3] != [sys.executable, "-m", "embedlab"] or not (cwd and capture_output and text) or other:
        return _cold(words, cwd=cwd, capture_output=capture_output, text=text, check=check, **other)
    with Client({address!r}) as relay:
        relay.send((str(cwd), words[3:]))
        done = subprocess.CompletedProcess(words, *relay.recv())
    if check:
        done.check_returncode()
    return done
subprocess.run = _run
"""


@contextmanager
def warmed(address: str) -> Iterator[list[list[str]]]:
    """Do the runs that a kernel asks for; give the list of them."""
    asked: list[list[str]] = []

    def serve() -> None:
        while True:
            with listener.accept() as kernel:
                if (message := kernel.recv()) is None:
                    return
                place, words = message
                asked.append(words)
                done = processes.start(Path(place), words).wait()
                kernel.send((done.status, done.stdout, done.stderr))

    with Listener(address) as listener:
        server = threading.Thread(target=serve, daemon=True)
        server.start()
        try:
            yield asked
        finally:
            with Client(address) as end:
                end.send(None)
            server.join()


@pytest.fixture
def execute(
    monkeypatch: pytest.MonkeyPatch, decoder_folder: Callable[[str], Path], tmp_path: Path
) -> Callable[[str], tuple[list[list[str]], list[nbformat.NotebookNode]]]:
    """Return a function that runs a notebook; it gives what was launched, and the cells with their outputs."""
    monkeypatch.setenv("EMBEDLAB_NOTEBOOK_DECODER", str(decoder_folder("llama")))
    monkeypatch.setenv("EMBEDLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the notebook puts its folder

    def run(name: str) -> tuple[list[list[str]], list[nbformat.NotebookNode]]:
        (path,) = [own for own in NOTEBOOKS if own.stem == name]
        notebook = nbformat.read(path, 4)
        address = str(tmp_path / "relay")
        notebook.cells.insert(0, nbformat.v4.new_code_cell(WARMED.replace("{address!r}", repr(address))))
        with warmed(address) as asked:
            place = {"metadata": {"path": str(path.parent)}}
            NotebookClient(notebook, timeout=None, resources=place).execute()
        return asked, notebook.cells[1:]

    return run


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(out.get("text", "") for out in cell.outputs)


def test_a_strategy_is_added(execute: Callable[[str], tuple[list[list[str]], list[Any]]], tmp_path: Path) -> None:
    asked, cells = execute("add_a_strategy")
    assert [words[0] for words in asked] == ["fit", "fit", "fit", "report"]
    launched, shown = (printed(cell) for cell in cells[-3::2])
    assert launched.count("test/stsb: Spearman") == 3
    assert re.search(r"^Echo: Spearman -?\d+\.\d\d$", shown, re.MULTILINE)
    assert all(label in shown for label in ("echo", "mean", "tfidf"))
    assert len(list(tmp_path.glob("my-strategies-*"))) == 1, "nothing is left elsewhere"


def test_a_decoder_is_probed(execute: Callable[[str], tuple[list[list[str]], list[Any]]], tmp_path: Path) -> None:
    asked, cells = execute("probe_a_decoder")
    assert [words[0] for words in asked] == ["probe"]
    best = [line.split()[-1] for cell in cells[5:6] for line in printed(cell).splitlines()]
    assert len(best) == 5
    assert best == sorted(best, key=float, reverse=True)
    assert sum("image/png" in out.get("data", {}) for cell in cells[6:] for out in cell.get("outputs", [])) == 2


def test_a_corpus_is_searched(execute: Callable[[str], tuple[list[list[str]], list[Any]]], tmp_path: Path) -> None:
    asked, cells = execute("search_a_corpus")
    assert [words[0] for words in asked] == ["fit", "export"]
    found, again = (
        [line.partition("  ")[2] for line in printed(cell).splitlines()]
        for cell in cells
        if cell.cell_type == "code" and "print(" in cell.source
    )
    assert len(found) == 5
    assert sorted(found) == sorted(again), "ranked again"
    (place,) = tmp_path.glob("search-*")
    assert (place / "my-embedder" / "modules.json").exists()
