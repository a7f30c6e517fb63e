"""How much memory a training step on triplets takes, whole and in chunks: BitFit, a process each."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.growth import texts
from benchmarks.measure import arguments, keep, settle
from embedlab.backbone import Backbone
from embedlab.data import Triplets
from embedlab.strategies.sgpt_bi import SGPTBiEncoder

# Triplets of a batch, and texts of a chunk: those of 32 triplets, and a third of them.
POINTS = ((32, None), (64, None), (256, None), (1024, None), (64, 96), (1024, 96), (1024, 32))

LARGEST = 1024
WHOLE = 256  # in chunks only beyond, as the whole takes 32 GiB


def step(number: int, chunk_size: int | None, name: str, device: str) -> dict[str, float]:
    """Take a step on a batch of triplets; return seconds, tokens, and the most memory beyond what is held before."""
    strategy = SGPTBiEncoder(Backbone(name), chunk_size=chunk_size).to(device)
    strategy.configure_model()
    strategy.train()
    own = random.Random(0).sample(texts(3 * LARGEST, 1), 3 * number)
    batch = Triplets(own[:number], own[number : 2 * number], [[text] for text in own[2 * number :]])
    strategy.loss(Triplets(own[:1], own[1:2], [[own[2]]])).backward()
    strategy.zero_grad(set_to_none=False)
    forget(device)
    tokens, before = strategy.backbone.trained_tokens, memory(device)
    settle(device)
    begun = time.perf_counter()
    strategy.loss(batch).backward()
    settle(device)
    seconds = time.perf_counter() - begun
    more = memory(device) - before
    return {"seconds": seconds, "tokens": strategy.backbone.trained_tokens - tokens, "MiB": more, "MiB before": before}


def forget(device: str) -> None:
    """Begin to look for the most memory anew."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the most so far becomes what is held now


def memory(device: str) -> float:
    """Return the most MiB held since `forget`: by tensors on a GPU, else by the process."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


def main() -> None:
    """Print a line per batch and size of chunks."""
    options = arguments(__doc__, rounds=False)
    rows = []
    for number, chunk_size in POINTS:
        if options.small:
            number, chunk_size = number // 8, chunk_size and chunk_size // 8
        elif chunk_size is None and number > WHOLE and options.device == "cpu":
            continue
        call = f"step({number}, {chunk_size}, {options.backbone!r}, {options.device!r})"
        code = f"import json; from benchmarks.training_memory import step; print(json.dumps({call}))"
        done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        rows.append({"triplets": number, "chunk_size": chunk_size, **found})
        cut = f"chunks of {chunk_size} texts" if chunk_size else "whole"
        print(
            f"{number:5} triplets, {cut:18}: {found['tokens']:7.0f} tokens {found['seconds']:7.1f} s "
            f"{found['MiB']:7.0f} MiB beyond the {found['MiB before']:.0f} held before",
            flush=True,
        )
    keep(options.json, rows)


if __name__ == "__main__":
    main()
