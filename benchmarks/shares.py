"""Tell where the seconds of an encoding, an extraction, a tuning step and a FREEZE step go, by kind of operation."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from benchmarks import freeze_step
from benchmarks.measure import arguments, keep, peak, processor, settle, stsb
from embedlab import losses, pooling
from embedlab.backbone import Backbone
from embedlab.backbone.tuning import BitFit
from embedlab.strategies.freeze_network import NetworkOptions, SiameseNetwork
from embedlab.strategies.optimisation import Training, adamw

# Operations of PyTorch, and kernels of a GPU, by what they are for; the first kind that matches counts.
KINDS: Final = {
    "products": r"aten::(b?mm|addmm|baddbmm|linear|mkldnn_linear|_?grouped_mm|convolution)|gemm|nvjet|cutlass|xmma",
    "attention": r"softmax|attention|flash|fmha",
    "optimiser": r"adam|foreach",
    "copies, casts": r"copy_|aten::(cat|index|index_select|index_copy_|index_add_|gather|stack|fill_|zero_|repeat)|"
    r"Memcpy|Memset|CatArray|index|copy_kernel",
    "random numbers": r"random_|bernoulli|distribution",
    "norm, rotation, activation": r"aten::|elementwise|reduce|vectorized|norm",
}


def jobs(backbone: str, device: str, small: bool) -> dict[str, Callable[[], Any]]:
    """Return what is looked at, by name."""
    frozen, tuned = Backbone(backbone).to(device), Backbone(backbone).to(device)
    frozen.load()
    tuned.load(BitFit())
    first, second, gold = stsb("train", step=600 if small else 20)
    texts = list(dict.fromkeys([*first, *second]))
    chosen = random.Random(0).sample(range(len(gold)), min(32, len(gold)))
    pairs, scores = [own[i] for own in (first, second) for i in chosen], torch.tensor([gold[i] for i in chosen])
    plan = Training(learning_rate=1e-5, warmup=0.0, decay=False)
    optimizer = adamw(tuned, "", plan, lambda _: None, 1)["optimizer"]

    def encode() -> None:
        with torch.inference_mode():
            frozen.pool(texts, pooling.mean)

    def extract() -> None:
        with torch.inference_mode():
            frozen.pool(texts, pooling.last, range(1, frozen.num_layers + 1))

    def step() -> None:
        optimizer.zero_grad()
        a, b = functional.normalize(tuned.pool(pairs, pooling.weighted_mean)[:, 0], dim=-1).chunk(2)
        losses.cosent((a * b).sum(-1), scores.to(device)).backward()
        optimizer.step()

    found: dict[str, Callable[[], Any]] = {
        "encode": encode,
        "features of all blocks": extract,
        "BitFit step, 32 pairs": step,
    }
    latents = [torch.randn(256, freeze_step.LAYERS, freeze_step.WIDTH, device=device).bfloat16()]
    for precision in ("float32", "bfloat16"):
        siamese, adam = freeze_step.ours(NetworkOptions(precision=precision), device)  # type: ignore[arg-type]
        score = partial(_score, siamese)
        found[f"FREEZE step, 128 pairs, {precision}"] = partial(freeze_step.train, score, adam, latents)
    return found


def _score(siamese: SiameseNetwork, first: Tensor, second: Tensor) -> Tensor:
    return siamese.forward(torch.cat([first, second]))


def shares(work: Callable[[], Any], device: str) -> tuple[float, dict[str, float]]:
    """Return the seconds of a job without the profiler, and the share of each kind of operation with it."""
    for _ in range(2):
        work()
    settle(device)
    begun = time.perf_counter()
    work()
    settle(device)
    seconds = time.perf_counter() - begun
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device != "cpu" else [])]
    with profile(activities=activities) as seen:
        begun = time.perf_counter()
        work()
        settle(device)
        watched = time.perf_counter() - begun
    spent = dict.fromkeys(KINDS, 0.0)
    for own in seen.key_averages():
        took = own.self_cpu_time_total if device == "cpu" else own.self_device_time_total
        kernel = device == "cpu" or own.device_type == torch.autograd.DeviceType.CUDA
        kind = next((kind for kind, names in KINDS.items() if re.search(names, own.key)), None)
        if kernel and kind is not None:
            spent[kind] += took / 1e6
    spent = {kind: took / watched for kind, took in spent.items()}
    return seconds, {**spent, "Python, idle" if device != "cpu" else "Python": max(0.0, 1 - sum(spent.values()))}


def main() -> None:
    """Print the table."""
    options = arguments(__doc__, rounds=False)
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}; ", end="")
    print(f"product peak {peak(torch.bfloat16, options.device) / 1e9:.0f} GFLOP/s")
    rows = []
    for name, work in jobs(options.backbone, options.device, options.small).items():
        seconds, found = shares(work, options.device)
        rows.append({"job": name, "seconds": seconds, "shares": found})
        print(
            f"  {name:32} {seconds:7.3f} s",
            *(f"  {kind} {share:.0%}" for kind, share in found.items() if share >= 0.005),
        )
    keep(options.json, rows)


if __name__ == "__main__":
    main()
