"""Errors of the store that travelled as a name and a text, made errors again."""

from __future__ import annotations

from daskqueue_storage import errors
from daskqueue_storage.errors import StorageError

__all__ = ["storage_error"]


def storage_error(kind: str, text: str, path: str) -> StorageError:
    """What the store said of `path` on a worker, as the class it was there; `StorageError` if that is unknown here."""
    known = getattr(errors, kind, None)
    cls = known if isinstance(known, type) and issubclass(known, StorageError) else StorageError
    error = cls.__new__(cls, text)
    error.args = (text,)  # an OSError's are set by its own __init__ only
    error.path = path
    return error
