"""daskqueue 0.2.0, whose import name is ours: installing it beside this package overwrites files of it."""

from __future__ import annotations

from importlib import metadata

from daskqueue.__about__ import __version__

__all__ = ["refuse_predecessor"]


def refuse_predecessor() -> None:
    """Raise ImportError with advice if a distribution `daskqueue` below 1.0 is installed."""
    try:
        version = metadata.version("daskqueue")
    except metadata.PackageNotFoundError:
        return
    if version.startswith("0."):
        raise ImportError(
            f"daskqueue {version} is installed beside daskqueue-dask {__version__} and overwrote files of it: "
            "pip uninstall daskqueue daskqueue-dask, then install daskqueue-dask again"
        )
