"""Work that tasks submit: it reaches its queue before the task that submitted it is reported as done.

Otherwise a join could find every queue idle while the task's own submissions are still on their way. Pools register
here; a worker asks after each run, and in a process without pools that costs a look at an empty set.
"""

from __future__ import annotations

import weakref
from typing import Protocol

__all__ = ["Flushable", "flush", "register", "unflushed"]


class Flushable(Protocol):
    """Something that buffers what was submitted."""

    @property
    def buffered(self) -> bool:
        """Whether something has not reached its queue."""

    def flush_now(self) -> None:
        """Wait until it has; called in a task's thread."""


_registered: weakref.WeakSet[Flushable] = weakref.WeakSet()


def register(flushable: Flushable) -> None:
    """Remember `flushable` while it lives."""
    _registered.add(flushable)


def unflushed() -> bool:
    """Whether anything is to be flushed."""
    return bool(_registered) and any(flushable.buffered for flushable in list(_registered))


def flush() -> None:
    """Flush everything that tasks of this process have submitted."""
    for flushable in list(_registered):
        if flushable.buffered:
            flushable.flush_now()
