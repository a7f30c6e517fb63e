"""What the server of `tests.processes` imports before it is forked: everything that a run needs, nothing that it does."""

import pkgutil
from importlib import import_module

import embedlab.training.cli
from embedlab import strategies

for module in pkgutil.iter_modules(strategies.__path__):
    import_module(f"{strategies.__name__}.{module.name}")
import_module("pyarrow.parquet")
import_module("lightning.pytorch.loggers")
assert embedlab.training.cli
