"""The source tree as the repository's tests see it: every module of every package, parsed once, never imported."""

import ast
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
DISTRIBUTION_OF = {
    "daskqueue_core": "daskqueue-core",
    "daskqueue_storage": "daskqueue-storage",
    "daskqueue": "daskqueue-dask",
}


class Imported(NamedTuple):
    """One import statement's target, absolute, and whether it runs when the module is imported."""

    module: str
    line: int
    at_import: bool


def is_deferred(node: ast.AST) -> bool:
    """Whether what is inside does not run when the module is imported: a function, or a block for type checkers."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))


class Source:
    """One module: where it is, what it is called, its syntax tree."""

    def __init__(self, path: Path, package: str) -> None:
        self.path = path
        self.package = package
        self.src = ROOT / "packages" / DISTRIBUTION_OF[package] / "src"
        parts = path.relative_to(self.src).with_suffix("").parts
        self.is_package = parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.is_package else parts)

    @cached_property
    def tree(self) -> ast.Module:
        """The module's syntax tree."""
        return ast.parse(self.path.read_text(encoding="utf-8"), filename=str(self.path))

    @property
    def dunder_all(self) -> list[str] | None:
        """The names in `__all__`, None without one. Only a literal list counts: a reader must see the surface."""
        for node in self.tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
                return list(ast.literal_eval(node.value))
        return None

    @property
    def defined(self) -> set[str]:
        """Names bound at the top level of the module, in branches too; imported ones included."""
        names: set[str] = set()
        pending: list[ast.stmt] = list(self.tree.body)
        while pending:
            node = pending.pop()
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                names.update(found.id for found in ast.walk(node) if isinstance(found, ast.Name))
            else:
                pending.extend(child for child in ast.walk(node) if isinstance(child, ast.stmt) and child is not node)
        return names

    @property
    def imports(self) -> list[Imported]:
        """Everything the module imports anywhere in it: functions and `if TYPE_CHECKING:` blocks are told apart."""
        later = {id(inner) for outer in ast.walk(self.tree) if is_deferred(outer) for inner in ast.walk(outer)}
        found: list[Imported] = []
        for node in ast.walk(self.tree):
            at_import = id(node) not in later
            if isinstance(node, ast.Import):
                found += [Imported(alias.name, node.lineno, at_import) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found.append(Imported(self._absolute(node), node.lineno, at_import))
        return found

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        base = self.name.split(".") if self.is_package else self.name.split(".")[:-1]
        base = base[: len(base) - (node.level - 1)]
        return ".".join([*base, *([node.module] if node.module else [])])


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def sources() -> list[Source]:
    """Every module of the three packages."""
    return [
        Source(path, package)
        for package, distribution in DISTRIBUTION_OF.items()
        for path in sorted((ROOT / "packages" / distribution / "src" / package).rglob("*.py"))
    ]
