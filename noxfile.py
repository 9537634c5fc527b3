"""Every gate of the project, one session each: `nox` runs what a contributor and CI need, `nox -s full` everything.

The matrix of Pythons is read from the classifiers in pyproject.toml, the tools from its [dependency-groups]; nothing is
written twice. Sessions install what they need from the index with pip, or with uv where uv is present.

Invariant: `nox` without argument stays under ten minutes on two cores for all packages, environments included.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nox

nox.needs_version = ">=2025.10.16"

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
LOWEST_PYTHON = PYTHONS[0]

CORE = ROOT / "packages" / "daskqueue-core"
STORAGE = ROOT / "packages" / "daskqueue-storage"
DASK = ROOT / "packages" / "daskqueue-dask"
PACKAGES = (CORE, STORAGE, DASK)
SOURCES = os.pathsep.join(str(package / "src") for package in PACKAGES)
# Which tests a distribution must pass when it is installed alone. tests/repo and tests/examples need the tree itself.
TESTS_OF = {CORE: ("core",), STORAGE: ("storage",), DASK: ("dask", "conformance")}

GATES = ("lint", "types", "imports")

nox.options.sessions = [*GATES, f"tests-{THIS_PYTHON}"]
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False  # skipped, also on CI: the machine decides which Pythons it has

# What is installed is what is judged: a PYTHONPATH from outside would put other sources before it.
os.environ.pop("PYTHONPATH", None)

# pyenv answers for the versions it is told to use, here only for the one in use; let it answer for all it has.
if shutil.which("pyenv"):
    asked = (["pyenv", "version-name"], ["pyenv", "versions", "--bare", "--skip-aliases"])
    told = [subprocess.run(words, capture_output=True, text=True, check=False).stdout for words in asked]
    os.environ["PYENV_VERSION"] = ":".join(dict.fromkeys(re.split(r"[:\s]+", " ".join(told).strip())))


# ------------------------------------------------------------------------------------------------------------- gates


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: rules and format."""
    install_group(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict, over the three packages."""
    session.install(*group("types"), *third_party(*PACKAGES))
    session.run("mypy")


@nox.session
def imports(session: nox.Session) -> None:
    """Import-linter: the arrows between packages and modules."""
    install_group(session, "imports")
    session.run("lint-imports", env={"PYTHONPATH": SOURCES})


@nox.session(python=sorted({*PYTHONS, THIS_PYTHON}))
def tests(session: nox.Session) -> None:
    """All tests but the slow ones; the packages are installed editable.

    Arguments go to pytest instead: `nox -s tests-3.12 -- -k ledger`, `nox -s tests-3.11 -- tests` for all.
    """
    install_editable(session)
    session.run("pytest", *(session.posargs or ("-m", "not slow")))


# ----------------------------------------------------------------------------------------------------- deeper checks


@nox.session(python=LOWEST_PYTHON)
def tests_lowest(session: nox.Session) -> None:
    """All tests on the oldest Python with the oldest dependencies we claim to support."""
    install_editable(session, "--constraint", str(ROOT / "tests" / "constraints-lowest.txt"))
    session.run("pytest", *session.posargs)


@nox.session
def isolated(session: nox.Session) -> None:
    """Build each wheel, install it without the source tree in sight, run that package's tests."""
    with tempfile.TemporaryDirectory() as elsewhere:
        wheels = Path(elsewhere) / "wheels"
        build_distributions(session, wheels, "--wheel")
        for package in PACKAGES:
            test_wheel(session, package, wheels, Path(elsewhere) / package.name)
        # The composed distribution has no tests of its own: it must resolve and bring the three.
        session.install("--no-index", "--find-links", str(wheels), "daskqueue")
        session.run("python", "-c", "import daskqueue, daskqueue_core, daskqueue_storage")


@nox.session
def properties(session: nox.Session) -> None:
    """The Hypothesis state machines with 2,000 examples of 50 steps."""
    install_editable(session)
    run_pytest = ("pytest", "-m", "properties", "--timeout=1800", *(session.posargs or ["tests"]))
    session.run(*run_pytest, env={"HYPOTHESIS_PROFILE": "properties"})


@nox.session
def storage_full(session: nox.Session) -> None:
    """The store's tests at length: tens of thousands of crash states, hundreds of kills, every bit."""
    install_editable(session)
    command = ("pytest", "tests/storage", "--timeout=1800", "--durations=10", *session.posargs)
    session.run(*command, env={"DASKQUEUE_STORAGE_ROUNDS": "35", "HYPOTHESIS_PROFILE": "properties"})


@nox.session
def planted(session: nox.Session) -> None:
    """Known bugs, planted one at a time in a copy of the store: its default tests must catch each."""
    install_editable(session)
    session.run("python", str(ROOT / "scripts" / "planted_bugs.py"), *session.posargs)


@nox.session
def chaos(session: nox.Session) -> None:
    """Processes are killed, frozen and terminated while they work: 500 rounds, or as many as the argument says."""
    install_editable(session)
    rounds = session.posargs[0] if session.posargs else "500"
    words = ("pytest", "-s", "-m", "slow", "tests/dask/test_chaos.py")
    session.run(*words, env={"DASKQUEUE_CHAOS_ROUNDS": rounds})


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks beside their peers."""
    install_editable(session, *group("bench"))
    for peers in sorted((ROOT / "benchmarks").glob("requirements*.txt")):
        session.install("-r", str(peers))
    session.run("pytest", *(session.posargs or ["benchmarks"]), "--benchmark-only", "--timeout=600", "-s")


@nox.session
def demo(session: nox.Session) -> None:
    """The main job on real input: hash every file of this interpreter's library through a queue."""
    session.install(*map(str, PACKAGES))
    session.run("python", str(ROOT / "examples" / "hash_tree.py"), *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Sdist and wheel of all four distributions into dist/."""
    build_distributions(session, ROOT / "dist")


@nox.session(python=False)
def full(session: nox.Session) -> None:
    """Everything there is, on every Python: its parts add up to about an hour on two cores."""
    for name in (
        *GATES,
        f"tests-{THIS_PYTHON}",
        "tests_lowest",
        "isolated",
        "properties",
        "storage_full",
        "planted",
        "demo",
    ):
        session.notify(name, posargs=["tests"] if name.startswith("tests") else [])
    for python in PYTHONS:
        session.notify(f"tests-{python}")


# --------------------------------------------------------------------------------------------------------- the hands


def group(*names: str) -> Sequence[str]:
    """The requirements of dependency groups."""
    return nox.project.dependency_groups(PYPROJECT, *names)


def install_group(session: nox.Session, name: str) -> None:
    """Install one dependency group."""
    session.install(*group(name))


def third_party(*packages: Path) -> list[str]:
    """What the packages need from the index: their requirements without our own distributions."""
    needed: list[str] = []
    for package in packages:
        project = nox.project.load_toml(package / "pyproject.toml")["project"]
        needed += [line for line in project["dependencies"] if not line.startswith("daskqueue")]
    return needed


def install_editable(session: nox.Session, *extra: str) -> None:
    """Install the three packages from the tree, with what their tests need.

    Two steps: with the build back-end at hand the editables need no build environments, which is most of the time.
    """
    session.install(*group("tests", "build"), *third_party(*PACKAGES), *extra)
    editables = [word for package in PACKAGES for word in ("-e", str(package))]
    session.install("--no-deps", "--no-build-isolation", *editables)


def build_distributions(session: nox.Session, target: Path, *what: str) -> None:
    """Build the four distributions into an emptied directory."""
    session.install(*group("build"))
    shutil.rmtree(target, ignore_errors=True)
    command = ("python", "-m", "build", "--no-isolation", *what, "--outdir", str(target))
    for project in (*PACKAGES, ROOT):
        session.run(*command, str(project), silent=True)


def test_wheel(session: nox.Session, package: Path, wheels: Path, suite: Path) -> None:
    """Run a package's tests against its wheel, from a directory that holds nothing but those tests.

    The packages are tested in the order of their dependencies and the environment only grows: when core's tests run,
    neither storage nor Dask is installed, so a test or module that reaches up fails here.
    """
    session.install(*group("tests"), *third_party(package))
    session.install("--no-index", "--find-links", str(wheels), package.name)
    for name in TESTS_OF[package]:
        if (ROOT / "tests" / name).is_dir():
            shutil.copytree(ROOT / "tests" / name, suite / "tests" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests" / "conftest.py", suite / "tests")
    shutil.copy(ROOT / "pyproject.toml", suite)
    with session.chdir(suite):
        session.run("pytest", "-p", "no:cacheprovider")
