"""`embedlab ls`: the runs in a folder and how each stands; what is done can be loaded by its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from embedlab.arguments import Parser
from embedlab.errors import UserError
from embedlab.report.command import collect, console
from embedlab.report.rows import Run

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Run `embedlab ls`.

    Args:
        arguments: What was typed after `ls`.

    Returns:
        Exit status 0.

    Raises:
        UserError: If there is no such folder, or no run in it.
    """
    parser = Parser(
        "embedlab ls",
        "List the runs in a folder. Those that are done can be loaded and used by their folder.",
        "example: embedlab ls runs/demo",
    )
    parser.add_argument("runs", metavar="RUNS", type=Path, nargs="?", default=Path("runs"), help="default: runs")
    folder = parser.read(arguments).runs
    if not folder.is_dir() and folder == Path("runs"):
        raise UserError(
            "`RUNS` must be a folder with runs, but there is no folder runs here; name one, or `embedlab compare demo`."
        )
    table = Table(box=None, pad_edge=False)
    for name in ("Run", "Strategy", "Decoder", "State", "Validation", "Test"):
        table.add_column(name, justify="right" if name in ("Validation", "Test") else "left", overflow="fold")
    for run in collect(folder):
        table.add_row(*_cells(run))
    console().print(table)
    return 0


def _cells(run: Run) -> list[str]:
    """Return what is shown of a run: Spearman x 100 on validation and on each test set; nDCG@10, named so, of a search."""
    result: Any = run.result or {}
    metrics = result.get("metrics") or {}
    shown = {name: _shown(values) for name, values in metrics.items()}
    tests = [f"{name.removeprefix('test/')} {own}" for name, own in shown.items() if name.startswith("test/")]
    decoder = (result.get("backbone") or {}).get("name") or "-"
    state = run.state if run.error is None else f"{run.state}: {run.error.splitlines()[0][:60]}"
    strategy = result.get("strategy") or "-"
    return [str(run.folder), strategy, decoder, state, shown.get("validation", "-"), ", ".join(tests) or "-"]


def _shown(values: Any) -> str:
    if (found := values.get("ndcg@10")) is not None:
        return f"nDCG@10 {100 * found:.2f}"
    return "-" if (own := values.get("spearman")) is None else f"{100 * own:.2f}"
