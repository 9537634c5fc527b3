"""What a running task can learn of itself: `current_task()`.

It is found through one context variable that holds a function: whoever runs tasks sets it once for a whole run
(`running`), and which task it is now is worked out only when somebody asks. So a task that does not ask pays nothing,
and copies of the context work too: threads made with `asyncio.to_thread`, asyncio tasks that a coroutine starts.

Not here: running tasks (`worker.runners`). Knows no Dask.

Invariant: a `Task` stays that of the task which asked, however long it is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from contextvars import ContextVar

__all__ = ["Task", "current_task", "running", "task_key"]


def task_key(client: int, number: int) -> str:
    """The key of a task that its client made."""
    return f"{client:016x}-{number}"


class Task:
    """One attempt of a task, as the task itself sees it.

    Attributes
    ----------
    key: what its future is known by; empty for an item that was put without one
    attempt: 1 for the first
    deadline: when its timeout is over, in seconds of `time.time()`; None if it has none
    """

    __slots__ = ("_asked", "_position", "attempt", "deadline", "key")

    def __init__(
        self, key: str, attempt: int, deadline: float | None, *, asked: Container[int] = (), position: int = 0
    ) -> None:
        self.key = key
        self.attempt = attempt
        self.deadline = deadline
        self._asked = asked  # positions whose cancellation was asked for; its run adds to it
        self._position = position

    @property
    def cancelled(self) -> bool:
        """Whether its cancellation was asked for, by now. A task that sees it may raise `CancelledError` and stop."""
        return self._position in self._asked

    def __repr__(self) -> str:
        return f"<Task {self.key or 'without key'}, attempt {self.attempt}{', cancelled' if self.cancelled else ''}>"


_source: ContextVar[Callable[[], Task | None]] = ContextVar("daskqueue_current_task")


def current_task() -> Task:
    """The task that calls this. Raises RuntimeError outside of one.

    Code that goes on after its task has ended (a thread that it left behind) is not in it any more: let the task ask,
    and hand the answer on.
    """
    source = _source.get(None)
    task = None if source is None else source()
    if task is None:
        raise RuntimeError(
            "current_task() was called outside of a task. Call it in a function that a consumer runs, or in a thread"
            " to which the task's context was copied (asyncio.to_thread does, threading.Thread does not)."
        )
    return task


class running:  # noqa: N801 - a context manager, at a third of the price of a generator's
    """What runs in this context belongs to the task that `source` tells; None: to none at that moment."""

    __slots__ = ("_source", "_token")

    def __init__(self, source: Callable[[], Task | None]) -> None:
        self._source = source

    def __enter__(self) -> None:
        self._token = _source.set(self._source)

    def __exit__(self, *_: object) -> None:
        _source.reset(self._token)
