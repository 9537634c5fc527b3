"""At the door of a directory: what the operating system refuses becomes an error of ours, with path and advice.

Not here: errors of writing and syncing, which `writer` judges; what they mean for what was acknowledged it alone knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

from daskqueue_storage.errors import AccessError, DiskFullError, StorageError
from daskqueue_storage.files import FULL_DISK

__all__ = ["at_the_door", "refusals"]

_F = TypeVar("_F", bound=Callable[..., Any])


@contextmanager
def refusals(path: object) -> Iterator[None]:
    """An `OSError` in here is an `AccessError`, or a `DiskFullError`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as problem:
        if problem.errno in FULL_DISK:
            raise DiskFullError(str(path), problem.strerror or "no room") from problem
        raise AccessError(str(path), problem) from problem


def at_the_door(opening: _F) -> _F:
    """The same for a method that opens the directory it is given first."""

    @wraps(opening)
    def opened(self: Any, path: object, *args: Any, **options: Any) -> Any:
        with refusals(path):
            return opening(self, path, *args, **options)

    return cast(_F, opened)
