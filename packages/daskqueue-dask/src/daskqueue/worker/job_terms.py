"""What goes into a job besides its elements, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypedDict

from daskqueue.wire.errors import TaskFailure
from daskqueue.worker.async_loop import PrivateLoop
from daskqueue_core.retry import RetryPolicy

__all__ = ["Context", "JobOptions", "JobReport", "failures_from"]

Context = Callable[[str], AbstractContextManager[Any]]


class JobOptions(TypedDict, total=False):
    """How a job runs, whatever it runs."""

    #: surrounds the run, and is given its name
    context: Context
    #: where coroutines run
    private_loop: PrivateLoop | None
    #: timeout and retry policy as `wire.control` wrote them; read where the tasks run, since that is user code
    control: bytes
    #: the policy of a batch that brings none
    retry: RetryPolicy | None
    #: a byte an element: how often it has failed before; empty: never
    attempts: bytes
    #: what names the tasks: their client and the number of the first, or a key each
    client: int
    first: int
    keys: tuple[str, ...]
    #: called in the watchdog's thread, each second while an element is over its timeout and goes on: time to `harvest`
    on_overdue: Callable[[], None] | None


class JobReport(NamedTuple):
    """What came of a job, or of the elements from `start` on; positions count from there."""

    #: one pickle of the values of the elements that were executed, None where one failed; empty if not kept
    values: bytes
    failures: tuple[TaskFailure, ...]
    #: how many elements were executed, or cancelled before they began
    executed: int
    #: from reading the elements to having written the values
    seconds: float
    #: the first element this speaks of: those before were harvested
    start: int = 0


def failures_from(start: int, failures: Sequence[TaskFailure]) -> tuple[TaskFailure, ...]:
    """Those from element `start` on, in order, counted from there."""
    if not failures:
        return ()
    left = [failure._replace(position=failure.position - start) for failure in failures if failure.position >= start]
    return tuple(sorted(left, key=_position))


def _position(failure: TaskFailure) -> int:
    return failure.position
