"""Work that tasks submit: it reaches its queue before the task that submitted it is reported as done.

Otherwise a join could find every queue idle while the task's own submissions are still on their way. Pools that are
opened inside a task register here; a worker asks after each run, and without such pools that is a look at an empty set.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, Protocol

from daskqueue.utils import logger

__all__ = ["FLUSH_S", "Flushable", "flush", "inside_task", "register", "task", "unflushed", "warn_of_waiting"]

FLUSH_S: Final = 5.0
"""A task that fills its own queue must not wait for itself for ever."""


class Flushable(Protocol):
    """Something that buffers what was submitted."""

    @property
    def buffered(self) -> bool:
        """Whether something has not reached its queue."""

    def flush_now(self) -> None:
        """Wait until it has, `FLUSH_S` at most; called in a task's thread."""


_warned = False
_inside: ContextVar[bool] = ContextVar("daskqueue_inside_task", default=False)
_registered: weakref.WeakSet[Flushable] = weakref.WeakSet()


def register(flushable: Flushable) -> None:
    """Remember `flushable` while it lives."""
    _registered.add(flushable)


def is_registered(flushable: object) -> bool:
    """Whether tasks wait for it when they end."""
    return flushable in _registered


@contextmanager
def task() -> Iterator[None]:
    """What runs here is a task, and what it starts."""
    token = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(token)


def inside_task() -> bool:
    """Whether this code runs in a task of ours: only pools opened there are flushed when tasks end."""
    return _inside.get()


def warn_of_waiting() -> None:
    """A task waits for another one; said once in a process."""
    global _warned
    if not _warned:
        _warned = True
        logger.warning(
            "a task waits for the result of another and keeps its slot meanwhile; when every slot waits, nothing runs: "
            "give the ConsumerPool more concurrency than there are tasks that wait, or let the client wait"
        )


def unflushed() -> bool:
    """Whether anything is to be flushed."""
    return bool(_registered) and any(flushable.buffered for flushable in list(_registered))


def flush() -> None:
    """Flush everything that tasks of this process have submitted. Does not raise: their own outcomes stand."""
    for flushable in list(_registered):
        if flushable.buffered:
            try:
                flushable.flush_now()
            except Exception as error:  # its pool was shut down meanwhile, say
                logger.warning("what a task submitted did not reach its queue: %s", error)
