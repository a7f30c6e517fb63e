"""How time and memory grow with the number of texts and with their length: 1, 4 and 16 times, a process each."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import torch

from benchmarks.measure import arguments, keep, stsb
from embedlab import pooling
from embedlab.backbone import Backbone

TIMES = (1, 4, 16)


def texts(number: int, length: int) -> list[str]:
    """Return distinct texts, each of `length` sentences of STS-B."""
    first, second, _ = stsb("train")
    sentences = list(dict.fromkeys([*first, *second]))
    return [" ".join(sentences[(i + j * 37) % len(sentences)] for j in range(length)) for i in range(number)]


def encode(number: int, length: int, name: str, device: str) -> dict[str, float]:
    """Embed texts; return seconds, tokens, and the memory that it took beyond what the loaded decoder takes."""
    backbone = Backbone(name).to(device)
    backbone.load()
    own = texts(number, length)
    with torch.inference_mode():
        backbone.pool(own[:8], pooling.mean)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun = time.perf_counter()
        backbone.pool(own, pooling.mean)
    seconds = time.perf_counter() - begun
    tokens = sum(map(len, backbone.tokenization.ids(own)))
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"seconds": seconds, "tokens": tokens, "MiB": more, "MiB before": before / 1024}


def main() -> None:
    """Print a line per number and length."""
    options = arguments(__doc__, rounds=False)
    number = 10 if options.small else 100
    rows = []
    points = [(number * n, 1) for n in TIMES] + [(number, n) for n in TIMES]
    for count, length in points:
        call = f"encode({count}, {length}, {options.backbone!r}, {options.device!r})"
        code = f"import json; from benchmarks.growth import encode; print(json.dumps({call}))"
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        rows.append({"texts": count, "sentences": length, **found})
        rate = found["tokens"] / found["seconds"]
        print(
            f"{count:6} texts of {length:3} sentences: {found['tokens']:8.0f} tokens {found['seconds']:8.2f} s "
            f"{rate:8.0f} tokens/s, {found['MiB']:6.0f} MiB beyond the {found['MiB before']:.0f} of the decoder",
            flush=True,
        )
    keep(options.json, rows)


if __name__ == "__main__":
    main()
