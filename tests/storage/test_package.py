"""The package as a whole: its version, its surface, what it may import, and how little an import costs."""

import ast
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import daskqueue_storage

SOURCE = Path(daskqueue_storage.__file__).parent
SYSTEM = {"os", "io", "socket", "time", "secrets", "uuid", "random", "shutil", "tempfile", "fcntl", "mmap", "stat"}


def test_says_its_version() -> None:
    """The version of the module is the version of the installed distribution."""
    try:
        installed = version("daskqueue-storage")
    except PackageNotFoundError:
        pytest.skip("imported from the source tree, not installed")
    assert daskqueue_storage.__version__ == installed


def imports_of(path: Path) -> set[str]:
    """The top names of everything a module imports, and `open` if it calls that."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
            found.add("open")
    return found


def test_one_door_to_the_operating_system() -> None:
    """Only `files` touches the system (the test kit may use chance): what goes around it cannot be crash-tested."""
    for path in SOURCE.rglob("*.py"):
        if path.name != "files.py":
            allowed = {"random"} if path.parent.name == "testing" else set()
            assert not imports_of(path) & ((SYSTEM | {"open"}) - allowed), path


def test_an_import_costs_nothing() -> None:
    """`import daskqueue_storage` loads its version and nothing else; names come when they are used."""
    script = (
        "import sys, daskqueue_storage\n"
        "assert not [name for name in sys.modules if name.startswith('daskqueue_storage.') and 'about' not in name]\n"
        "daskqueue_storage.SegmentedLog\n"
        "assert 'daskqueue_storage.log' in sys.modules and 'hypothesis' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_surface_is_that_of_the_modules() -> None:
    """Every public name resolves; every error of the tree is public; another name is an AttributeError."""
    from daskqueue_storage import errors

    assert set(errors.__all__) <= set(daskqueue_storage.__all__)
    for name in daskqueue_storage.__all__:
        assert getattr(daskqueue_storage, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        daskqueue_storage.Nothing  # noqa: B018
