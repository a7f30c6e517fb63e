"""What `embedlab probe` leaves: a table and a figure of each kind of numbers, and a summary on the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embedlab import runs

__all__ = ["tell", "write"]


def write(
    out: Path, tables: Mapping[str, Sequence[Mapping[str, Any]]], record: Mapping[str, Any], whole: float | None
) -> None:
    """Write every table with its figure, and last what was asked; nothing is left where one of them cannot be written."""
    from embedlab.analysis import figures
    from embedlab.backbone.shards import write_whole

    pairs = record["data"]["pairs"]
    path = Path(pairs["path"])
    name = path.name if path.suffix else f"{path}, {pairs['split']}"  # a file has no split, and may lie deep
    data = f"{pairs['rows']:,} pairs of {name}"
    written: list[Path] = []

    def put(name: str, content: bytes) -> None:
        written.append(out / name)
        write_whole(written[-1], content)

    try:
        for name, rows in tables.items():
            put(f"{name}.csv", _csv(rows))
            if name == "freeze":
                figure = figures.freeze(rows, whole, record["run"]["name"], data)
            else:
                figure = getattr(figures, name)(rows, data)
            for suffix, content in figures.files_of(figure).items():
                put(f"{name}{suffix}", content)
        runs.write_json_atomic(out / "probe.json", record)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)  # or the same command would find its folder taken
        raise


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return rows as a table."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _plain(value) for key, value in row.items()} for row in rows)
    return stream.getvalue().encode()


def _plain(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def tell(tables: Mapping[str, Sequence[Mapping[str, Any]]], record: Mapping[str, Any], out: Path) -> None:
    """Print each decoder's best layers, and where the rest is."""
    from rich.table import Table

    from embedlab.report.command import console

    pairs = record["data"]["pairs"]
    if rows := tables.get("correlations"):
        title = (
            f"Spearman x 100 on {pairs['rows']:,} pairs of {pairs['path']} {pairs['split']}; best layer, picked on them"
        )
        table = Table(
            "Decoder", "Pooling", "Raw", "Centred", "Z-scored", "Whitened", title=title, box=None, pad_edge=False
        )
        keys = dict.fromkeys((row["decoder"], row["pooling"]) for row in rows)
        for key in keys:
            own = [row for row in rows if (row["decoder"], row["pooling"]) == key and row["spearman"] is not None]
            kinds = [[row for row in own if row["treatment"] == k] for k in ("raw", "centred", "z-scored", "whitened")]
            best = [max(kind, key=lambda row: row["spearman"]) if kind else None for kind in kinds]
            table.add_row(*key, *("-" if b is None else f"{100 * b['spearman']:.2f} ({b['layer']})" for b in best))
        console().print(table)
    if (run := record.get("run")) and run["spearman"] is not None:
        print(f"run: Spearman {100 * run['spearman']:.2f} on {run['pairs']:,} pairs")  # noqa: T201  # the command's answer
    if pairs["split"] == "test":
        print("note: these are test pairs; pick nothing by them")  # noqa: T201
    for label, own in record["decoders"].items():
        for note in own["notes"]:
            print(f"note: {label}: {note}")  # noqa: T201
    print(f"tables and figures: {out}")  # noqa: T201
