"""The version of daskqueue-dask: static, the one place it is written; the build reads it from here."""

__all__ = ["__version__"]

__version__ = "1.0.0.dev0"
