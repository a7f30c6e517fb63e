"""The import law, read from syntax trees, and shown to bite."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import embedlab

PACKAGE = Path(embedlab.__file__).parent
MODULES = {
    ".".join(["embedlab", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
HEAVY = {
    "torch",
    "lightning",
    "transformers",
    "tokenizers",
    "peft",
    "datasets",
    "pandas",
    "wandb",
    "scipy",
    "sklearn",
}

# The import law: a room of the package, and the rooms it may import. A room is a module or a folder beside cli.py.
LAW: dict[str, set[str]] = {
    "errors": set(),
    "distributed": set(),
    "json_lines": {"errors"},
    "metrics": set(),
    "packing": set(),
    "source_hash": {"source_imports"},
    "source_imports": set(),
    "yaml_files": {"errors"},
    "analysis": {
        *("arguments", "backbone", "configs", "data", "errors", "losses", "metrics", "packing", "pooling", "report"),
        *("resources", "runs", "strategies", "use", "yaml_files"),
    },
    "arguments": {"errors"},
    "configs": {"arguments", "errors", "yaml_files"},
    "losses": {"errors"},
    "resources": {"errors"},
    "pooling": {"packing"},
    "backbone": {"errors", "packing", "pooling", "resources", "source_hash"},
    "data": {"errors", "json_lines", "resources", "retrieval"},
    "strategies": {"backbone", "data", "distributed", "errors", "losses", "packing", "pooling", "resources"},
    "runs": {"errors", "source_hash", "source_imports", "yaml_files"},
    "training": {
        *("arguments", "backbone", "data", "distributed", "errors", "losses", "metrics", "pooling", "runs"),
        *("resources", "retrieval", "source_hash", "strategies", "yaml_files"),
    },
    "export": {"arguments", "backbone", "errors", "packing", "pooling", "runs", "strategies", "use"},
    "use": {
        *("arguments", "errors", "json_lines", "report", "resources", "retrieval", "runs", "source_hash", "strategies"),
        *("training", "yaml_files"),
    },
    "retrieval": {"arguments", "errors", "json_lines"},
    "report": {"arguments", "errors", "runs", "yaml_files"},
    "precheck": {"errors", "yaml_files"},
    "study": {"arguments", "configs", "errors", "precheck", "report", "resources", "retrieval", "runs", "yaml_files"},
}
ANYTHING = {"", "__main__", "cli"}  # import what they need, when they need it
LIGHT_ROOMS = (
    *(
        "",
        "__main__",
        "arguments",
        "cli",
        "configs",
        "errors",
        "precheck",
        "report",
        "resources",
        "runs",
        "source_hash",
        "source_imports",
    ),
    *("study", "yaml_files"),
)


def imports(tree: ast.AST, package: str, at_import: bool = False) -> Iterator[str]:
    """Give the dotted names a module imports.

    Args:
        tree: The module.
        package: What relative imports start from.
        at_import: Leave out what is imported inside functions, or for type checkers only.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)
        elif not (at_import and is_late(node)):
            yield from imports(node, package, at_import)


def is_late(node: ast.AST) -> bool:
    """Tell whether a statement's inside does not run when its module is imported."""
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def modules_of(name: str, at_import: bool = False, source: str | None = None) -> set[str]:
    """Return what a module imports: modules of ours by full name, others by their top package."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for dotted in imports(ast.parse(path.read_text() if source is None else source), package, at_import):
        if dotted.partition(".")[0] != "embedlab":
            found.add(dotted.partition(".")[0])
            continue
        while dotted not in MODULES:
            dotted = dotted.rpartition(".")[0]
        found.add(dotted)
    return found


def reachable(name: str, at_import: bool, sources: dict[str, str] | None = None) -> dict[str, str]:
    """Return all that importing a module brings in, each with the module that asks for it."""
    found: dict[str, str] = {}
    waiting = [name]
    while waiting:
        asking = waiting.pop()
        parents = {asking[:end] for end, sign in enumerate(asking) if sign == "."} if asking in MODULES else set()
        for own in modules_of(asking, at_import, (sources or {}).get(asking)) | (parents & set(MODULES)):
            if own not in found and own != name:
                found[own] = asking
                if own in MODULES:
                    waiting.append(own)
    return found


def heavy(name: str, sources: dict[str, str] | None = None) -> dict[str, str]:
    return {own: asking for own, asking in reachable(name, True, sources).items() if own in HEAVY}


def defines_a_strategy(path: Path) -> bool:
    """Tell whether a module holds a class of a method: one that is final and stands on a base of strategies."""
    bases = {"EmbeddingStrategy", "Embedder", "Trainable"}
    classes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
    return any(
        bases & {ast.unparse(base) for base in node.bases} and "final" in map(ast.unparse, node.decorator_list)
        for node in classes
    )


STRATEGIES = {name for name, path in MODULES.items() if ".strategies." in name and defines_a_strategy(path)}


def room(name: str) -> str:
    """Return the room of a module: the part of its name behind `embedlab`."""
    return name.partition(".")[2].partition(".")[0]


# The half that compares has no torch ------------------------------------------------------------------------

LIGHT = sorted(name for name in MODULES if room(name) in LIGHT_ROOMS)


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_reach_nothing_heavy(name: str) -> None:
    assert heavy(name) == {}


def test_the_law_can_fail() -> None:
    stats = MODULES["embedlab.report.statistics"].read_text()
    for line in (
        "import torch",
        "from torch import nn",
        "import torch.nn as nn",
        "if True:\n    import torch",
    ):
        assert heavy("embedlab.report.command", {"embedlab.report.statistics": f"{stats}\n{line}\n"}) == {
            "torch": "embedlab.report.statistics"
        }
    assert heavy("embedlab.report.command", {"embedlab.report.statistics": f"{stats}\nfrom embedlab import backbone\n"})
    assert heavy(
        "embedlab.report.command", {"embedlab.report.statistics": f"{stats}\nfrom ..backbone import Backbone\n"}
    )
    inside = f"{stats}\ndef late():\n    import torch\nif TYPE_CHECKING:\n    import torch\n"
    assert not heavy("embedlab.report.command", {"embedlab.report.statistics": inside})
    assert "torch" in heavy("embedlab.training.cli")


TORCHLESS = [
    "embedlab.analysis.cache_command",
    "embedlab.analysis.probe",
    "embedlab.retrieval.bm25",
    "embedlab.retrieval.corpus",
    "embedlab.retrieval.cut",
    "embedlab.retrieval.measures",
]


@pytest.mark.parametrize("name", TORCHLESS)
def test_collections_and_their_measures_reach_nothing_heavy(name: str) -> None:
    assert heavy(name) == {}


def loads_torch(line: str) -> bool:
    """Tell whether a fresh process has torch after a line of Python."""
    code = f"import sys\nsys.path.insert(0, {str(PACKAGE.parent)!r})\n{line}\nsys.exit('torch' in sys.modules)"
    return bool(subprocess.run([sys.executable, "-c", code], check=False).returncode)


def test_a_fresh_process_stays_without_torch() -> None:
    assert not loads_torch(f"import {', '.join([*LIGHT, *TORCHLESS])}")


def test_the_fresh_process_can_fail() -> None:
    assert loads_torch("sys.modules['torch'] = sys")


# Who may know whom ------------------------------------------------------------------------------------------


def against_the_law(name: str, source: str | None = None) -> set[str]:
    """Return what a module of ours imports although the law does not let it."""
    own = room(name)
    if own in ANYTHING:
        return set()
    others = {other for other in modules_of(name, source=source) if other in MODULES and room(other) not in (own, "")}
    return {other for other in others if room(other) not in LAW[own]}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_the_law_is_kept(name: str) -> None:
    assert against_the_law(name) == set()


def test_the_law_bites() -> None:
    source = MODULES["embedlab.data.sources"].read_text()
    found = against_the_law("embedlab.data.sources", f"{source}\nfrom embedlab.backbone.reader import Reader\n")
    assert found == {"embedlab.backbone.reader"}


def test_the_law_names_every_room_and_no_other() -> None:
    assert {room(name) for name in MODULES} - ANYTHING == set(LAW)


def test_the_law_points_one_way() -> None:
    def below(own: str) -> set[str]:
        return LAW[own] | {further for other in LAW[own] for further in below(other)}

    assert not {own for own in LAW if own in below(own)}


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_strategy_knows_no_other(name: str) -> None:
    assert not modules_of(name) & (STRATEGIES - {name})


def test_the_base_of_strategies_knows_none_of_them() -> None:
    assert not modules_of("embedlab.strategies.base") & STRATEGIES


def test_only_training_knows_weights_and_biases() -> None:
    assert {name for name in MODULES if "wandb" in modules_of(name)} <= {"embedlab.training.loggers"}


def test_nothing_imports_tests_or_notebooks() -> None:
    assert not {name for name in MODULES if modules_of(name) & {"tests", "notebooks"}}


@pytest.mark.parametrize("name", LIGHT)
def test_importing_only_defines(name: str) -> None:
    allowed = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign | ast.If
    for node in ast.parse(MODULES[name].read_text()).body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert is_docstring or isinstance(node, allowed), f"{name}, line {node.lineno}"


# Size and names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(MODULES))
def test_modules_stay_small(name: str) -> None:
    limit = 165 if name in STRATEGIES else 300
    assert len(MODULES[name].read_text().splitlines()) <= limit


def test_classes_stay_small() -> None:
    sizes = {
        f"{name}.{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    assert not {name: size for name, size in sizes.items() if size > 200}


def test_names_say_what_is_inside() -> None:
    vague = {"utils", "util", "common", "helpers", "misc", "tools"}
    assert not {name for name in MODULES if vague & set(name.split("."))}
