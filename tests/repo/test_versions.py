"""Versions and ranges: each is written once and everything that repeats it agrees.

The files are read as text on purpose: Python 3.10 has no TOML reader, and the lines in question are plain.
"""

import re
from pathlib import Path

import pytest

DISTRIBUTIONS = {
    "daskqueue-core": "daskqueue_core",
    "daskqueue-storage": "daskqueue_storage",
    "daskqueue-dask": "daskqueue",
}


def static_version(root: Path, distribution: str) -> str:
    """The version in a package's `__about__`."""
    about = root / "packages" / distribution / "src" / DISTRIBUTIONS[distribution] / "__about__.py"
    return re.search(r'^__version__ = "(.+)"$', about.read_text(), re.MULTILINE)[1]


def requirements(pyproject: Path) -> list[str]:
    """The entries of `[project] dependencies`."""
    block = re.search(r"^dependencies = \[(.*?)\]( *#.*)?$", pyproject.read_text(), re.MULTILINE | re.DOTALL)[1]
    return re.findall(r'"([^"]+)"', block)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_changelog_starts_with_the_version(root, distribution: str) -> None:
    """The newest entry of a package's CHANGELOG is the version it carries."""
    changelog = (root / "packages" / distribution / "CHANGELOG.md").read_text()
    assert re.search(r"^## (\S+)", changelog, re.MULTILINE)[1] == static_version(root, distribution)


@pytest.mark.parametrize("distribution", [*DISTRIBUTIONS, "daskqueue"])
def test_siblings_are_required_by_a_range_that_holds(root, distribution: str) -> None:
    """A sibling is required as `>=floor,<next major`, and its version today lies inside."""
    pyproject = root / ("" if distribution == "daskqueue" else f"packages/{distribution}") / "pyproject.toml"
    for line in requirements(pyproject):
        if not line.startswith("daskqueue"):
            continue
        sibling, floor, ceiling = re.fullmatch(r"(daskqueue-\w+)>=([\w.]+),<(\d+)", line).groups()
        major = int(static_version(root, sibling).split(".")[0])
        assert int(floor.split(".")[0]) <= major < int(ceiling), line


def test_the_composed_distribution_brings_all_three(root) -> None:
    """`daskqueue` requires exactly the three packages."""
    assert {re.split(r"[<>=]", line)[0] for line in requirements(root / "pyproject.toml")} == set(DISTRIBUTIONS)


def test_the_floors_are_what_is_tested(root) -> None:
    """`tests_lowest` runs with exactly the floors that daskqueue-dask declares."""
    lines = requirements(root / "packages" / "daskqueue-dask" / "pyproject.toml")
    floors = {line.replace(">=", "==") for line in lines if not line.startswith("daskqueue")}
    constraints = (root / "tests" / "constraints-lowest.txt").read_text().splitlines()
    assert {line for line in constraints if line and not line.startswith("#")} == floors


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_every_wheel_carries_the_license(root, distribution: str) -> None:
    """A package's LICENSE is the repository's: a wheel can only take a file from its own folder."""
    assert (root / "packages" / distribution / "LICENSE").read_text() == (root / "LICENSE").read_text()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_pythons_are_the_same_everywhere(root, distribution: str) -> None:
    """All distributions claim the Pythons of the root, from which nox reads its matrix."""
    claim = re.compile(r'^(?:requires-python.*|    "Programming Language :: Python.*)$', re.MULTILINE)
    theirs = (root / "packages" / distribution / "pyproject.toml").read_text()
    assert claim.findall(theirs) == claim.findall((root / "pyproject.toml").read_text())
