"""Take turns: every way of doing a job runs once a round, in one process, on the same input; medians are compared."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embedlab.backbone import Backbone
from embedlab.data import Source

__all__ = [
    "Row",
    "apart",
    "arguments",
    "arithmetic",
    "in_turn",
    "keep",
    "lines",
    "peak",
    "processor",
    "show",
    "stock",
    "stsb",
]


@dataclass(frozen=True)
class Row:
    """One line of a result.

    Attributes:
        job: What was done.
        way: How.
        seconds: Of each round.
        times_ours: Median over rounds of these seconds by ours of the same round; 1 for ours.
        share_of_peak: Of the machine's own product peak; None where it was not counted.
        note: What else is to be known: tokens, how far results lie apart.
    """

    job: str
    way: str
    seconds: list[float]
    times_ours: float
    share_of_peak: float | None = None
    note: str = ""


def arguments(description: str | None, rounds: bool = True) -> argparse.Namespace:
    """Read what every script takes: `--json`, `--small` and so on, and `--rounds` where something takes turns."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    if rounds:
        parser.add_argument("--rounds", type=int, default=3, help="how often every way has its turn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    parser.add_argument("--small", action="store_true", help="next to no work: shows that the script runs")
    parser.add_argument("--backbone", default="smollm2-135m", help="a decoder's name, as embedlab takes it")
    parser.add_argument("--device", default="cpu", help="where it runs")
    return parser.parse_args()


def in_turn(ways: Mapping[str, Callable[[], Any]], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Run every way once a round; return the seconds of each. Whoever calls has warmed them up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            settle(device)
            begun = time.perf_counter()
            work()
            settle(device)
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def settle(device: str) -> None:
    """Wait for a GPU's queue."""
    if device != "cpu":
        torch.cuda.synchronize()


def lines(
    job: str,
    seconds: Mapping[str, Sequence[float]],
    notes: Mapping[str, str],
    operations: float | None = None,
    product_peak: float = 1.0,
) -> list[Row]:
    """Return a row for every way, of which the first is ours.

    Args:
        job: What was done.
        seconds: What `in_turn` returned.
        notes: What is to be said of a way.
        operations: What the job needs; every way is measured by it, whatever else it computes.
        product_peak: Operations a second that the machine can do.
    """
    ours = next(iter(seconds.values()))
    rows = []
    for way, own in seconds.items():
        times = statistics.median(a / b for a, b in zip(own, ours, strict=True))
        share = None if operations is None else operations / statistics.median(own) / product_peak
        rows.append(Row(job, way, list(own), times, share, notes.get(way, "")))
    return rows


def peak(dtype: torch.dtype = torch.bfloat16, device: str = "cpu") -> float:
    """Measure the machine's product peak, in floating-point operations a second: the best of 20 products."""
    size = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(20):
        settle(device)
        begun = time.perf_counter()
        torch.mm(a, b)
        settle(device)
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def arithmetic(backbone: Backbone, tokens: int, passes: float = 1) -> float:
    """Count the operations of the linear layers of all blocks for some tokens.

    Args:
        backbone: The decoder.
        tokens: How many there are, padding left out.
        passes: 1 for forward; 2 with the gradient of activations, 3 with that of weights as well.
    """
    blocks = backbone.reader.blocks
    weights = sum(p.numel() for name, p in blocks.named_parameters() if p.ndim == 2 and "lora_" not in name)
    return 2.0 * weights * tokens * passes


def stsb(split: str = "test", step: int = 1) -> tuple[list[str], list[str], list[float]]:
    """Return first texts, second texts and gold scores (0 to 1) of every `step`-th pair of the STS Benchmark."""
    rows = Source("stsb", split=split).read()
    assert rows.score is not None
    first, second = ([text for (text,) in rows.texts[side][::step]] for side in ("first", "second"))
    return first, second, rows.score[::step]


def stock(backbone: Backbone, dtype: torch.dtype, head: bool = False) -> Any:
    """Load the decoder by transformers' own class, with transformers' own attention."""
    return backbone.files.load(dtype, head).to(backbone.device)


def apart(a: Tensor, b: Tensor) -> float:
    """Return how far two results lie apart, relative to the size of the second."""
    return float((a.float() - b.float()).norm() / b.float().norm())


def processor() -> str:
    """Return the processor's name, or the GPU's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    named = [own for own in Path("/proc/cpuinfo").read_text().splitlines() if own.startswith("model name")]
    return named[0].partition(": ")[2] if named else platform.machine()


def show(rows: Sequence[Row], path: Path | None, product_peak: float) -> None:
    """Print the rows as a table, and write them to a file where one is named."""
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}; ", end="")
    print(f"product peak {product_peak / 1e9:.0f} GFLOP/s")
    for own in rows:
        share = "" if own.share_of_peak is None else f"{own.share_of_peak:6.1%} of the peak"
        middle = statistics.median(own.seconds)
        print(f"  {own.job:34} {own.way:44} {middle:8.3f} s  x{own.times_ours:5.2f}  {share} {own.note}")
    keep(path, [asdict(own) for own in rows], peak=product_peak)


def keep(path: Path | None, rows: Sequence[Mapping[str, Any]], **facts: Any) -> None:
    """Write rows to a file where one is named, with what is to be known of the machine."""
    if path is not None:
        facts |= {"threads": torch.get_num_threads(), "torch": torch.__version__, "machine": processor()}
        path.write_text(json.dumps({**facts, "rows": rows}, indent=1))
