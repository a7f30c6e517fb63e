"""Print the study of claim C15: so many settings of FREEZE drawn at random, of which the first are always the same."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from embedlab.yaml_files import write_value

__all__ = ["drawn"]

SPACE: Final[Mapping[str, Sequence[Any]]] = {
    "model.network.widths": [[128], [256], [512], [128, 256], [256, 512], [512, 256]],
    "model.network.depth": [2, 3],
    "model.network.dropout": [0.0, 0.1, 0.3],
    "model.network.activation": [f"torch.nn.{own}" for own in ("GELU", "SiLU", "ReLU")],
    "model.network.head.layers": [1, 2, 3],
    "model.network.head.width": [128, 512, 1024],
    "model.training.learning_rate": [1e-4, 3e-4, 1e-3],
    "model.training.weight_decay": [0.0, 0.01],
}


def drawn(number: int) -> str:
    """Return the study of C15 with that many drawn points, of which the first are always the same."""
    generator = random.Random(15)
    lines = [
        "# C15 of FREEZE: a search over its settings brings nothing; points drawn at random, judged on validation",
        f"# Drawn, the first ones always the same, by:  python -m benchmarks.freeze_search {number}",
        "# The best on validation is compared with `published`, the last rung of the ladder, on the test rows.",
        "# Run:  embedlab compare freeze-claims/c15",
        "study: freeze-c15",
        "protocol: protocol",
        "backbone: backbones/smollm2-135m",
        "seeds: [0, 1, 2]",
        "strategies:",
        "  published: strategies/freeze",
    ]
    for point in range(1, number + 1):
        lines += [f"  point-{point:02}:", "    config: strategies/freeze", "    overrides:"]
        lines += [f"      {key}: {write_value(generator.choice(values))}" for key, values in SPACE.items()]
    return "\n".join([*lines, "overrides:", "  trainer.max_epochs: 30", ""])


def main() -> int:
    """Print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("number", metavar="N", type=int, help="how many points")
    if (number := parser.parse_args().number) < 1:
        print(f"`N` must be at least 1, got {number}; raise it.", file=sys.stderr)
        return 2
    print(drawn(number), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
