"""What the server of `tests.processes` does before it is forked: imports all that a run needs, and reads what it reads.

A first command line takes a second, as signatures and docstrings are looked at, and every later one a fifth of that;
sources are hashed once, as the server of `embedlab compare` does it. wandb is among what the protocol imports. Processes
that are not forked begin without this.
"""

import contextlib
import io
import pkgutil
import sys
from importlib import import_module
from pathlib import Path

import embedlab.training.cli
from embedlab import configs, strategies
from embedlab.source_hash import module_hashes

for module in pkgutil.iter_modules(strategies.__path__):
    import_module(f"{strategies.__name__}.{module.name}")
import_module("pyarrow.parquet")
import_module("lightning.pytorch.loggers")
for name, own in list(sys.modules.items()):
    if name.partition(".")[0] == "embedlab" and own.__file__ is not None:
        module_hashes(name, Path(own.__file__))
for name in ("freeze", "lora_bi"):
    words = [
        "fit",
        "-c",
        str(configs.find("protocol")),
        "-c",
        str(configs.find(f"strategies/{name}")),
        "--print_config",
    ]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        embedlab.training.cli.main(words)
