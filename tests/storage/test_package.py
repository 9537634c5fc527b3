"""The storage package while it is empty: it imports, says its version and promises nothing more."""

from importlib.metadata import PackageNotFoundError, version

import pytest

import daskqueue_storage


def test_says_its_version() -> None:
    """The version of the module is the version of the installed distribution."""
    try:
        installed = version("daskqueue-storage")
    except PackageNotFoundError:
        pytest.skip("imported from the source tree, not installed")
    assert daskqueue_storage.__version__ == installed


def test_promises_nothing_more() -> None:
    """Until the store lands, the surface is the version."""
    assert daskqueue_storage.__all__ == ["__version__"]
