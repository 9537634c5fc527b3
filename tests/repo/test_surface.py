"""The public surface is listed, true and typed: `__all__` everywhere, `__init__` only re-exports, py.typed shipped."""

import ast
import importlib

import pytest

PACKAGES = ("daskqueue_core", "daskqueue_storage", "daskqueue")


def test_every_module_declares_its_surface(sources) -> None:
    """Each module has a literal `__all__`."""
    assert [source.name for source in sources if source.dunder_all is None] == []


def test_every_listed_name_exists(sources) -> None:
    """What `__all__` lists is bound in the module, or the module resolves it lazily with `__getattr__`."""
    missing = [
        f"{source.name}: {name}"
        for source in sources
        if "__getattr__" not in source.defined
        for name in source.dunder_all or ()
        if name not in source.defined
    ]
    assert missing == []


def test_no_name_is_listed_twice(sources) -> None:
    """`__all__` holds each name once."""
    assert [s.name for s in sources if s.dunder_all is not None and len(set(s.dunder_all)) < len(s.dunder_all)] == []


def test_every_module_says_what_it_is(sources) -> None:
    """Each module opens with a docstring."""
    assert [source.name for source in sources if not ast.get_docstring(source.tree)] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_the_package_keeps_its_promises(package: str) -> None:
    """Every public name can be fetched from the package, lazily resolved ones included, and `dir` shows it."""
    module = importlib.import_module(package)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert set(module.__all__) <= set(dir(module))


def test_package_roots_only_re_export(sources) -> None:
    """A distribution's `__init__` defines no class, and no function but the two of lazy attributes."""
    offenders = [
        f"{source.name}: {node.name}"
        for source in sources
        if source.name in PACKAGES
        for node in source.tree.body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        and node.name not in ("__getattr__", "__dir__")
    ]
    assert offenders == []


def test_the_types_are_shipped(root) -> None:
    """Each package carries py.typed."""
    assert len(list(root.glob("packages/*/src/*/py.typed"))) == len(PACKAGES)
