"""`TaskFuture`, what a submitter of one call holds, and the sink that completes it.

A `TaskFuture` is a `concurrent.futures.Future`, so that `wait`, `as_completed` and `asyncio.wrap_future` of the
standard library work with it; it shares its Condition with its neighbours and decodes its value when it is asked for.

A *sink* is what the collector delivers to: `FutureSink`, `TaskBatch` or `ValueStream`. Deliveries come on the client's
event loop.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING
from typing import Any, Final, NoReturn, Protocol

from daskqueue.client.callbacks import CallbackThread
from daskqueue.client.naming import task_key
from daskqueue.client.pieces import LostPiece, Piece
from daskqueue.client.timeouts import WaitTimeout
from daskqueue.wire import nested
from daskqueue_core.outcomes import End
from daskqueue_core.producer import Delivery

__all__ = ["FoundFuture", "FutureSink", "Home", "KeyedFuture", "Sink", "TaskFuture", "task_key"]

_DONE: Final = frozenset({CANCELLED_AND_NOTIFIED, FINISHED})
_awaited: Final[set[TaskFuture]] = set()  # pending, with callbacks: a batch alone would not hold them


class Sink(Protocol):
    """Who hears of outcomes."""

    keeps: bool
    """Whether the outcomes can be read again, by key."""

    def deliver(self, delivery: Delivery) -> None:
        """These messages ended."""

    def lose(self, lo: int, hi: int, error: BaseException) -> None:
        """The messages `lo` to `hi` of the sink end with `error`."""


class Home(Protocol):
    """The pool that a future belongs to."""

    callbacks: CallbackThread
    client_id: int

    def unname_task(self, number: int) -> None:
        """The client's task `number` had an explicit key, and has ended without an outcome. Called by any thread."""

    def cancel_future(self, future: TaskFuture) -> bool:
        """See `TaskFuture.cancel`."""

    async def cancel_future_async(self, future: TaskFuture) -> bool:
        """See `TaskFuture.cancel_async`."""

    def cancel_batch(self, batch: Sink) -> int:
        """See `TaskBatch.cancel`."""

    def abandon(self, sink: Sink) -> None:
        """Nobody reads this any more: cancel what has not ended, without waiting."""

    def check_may_wait(self) -> None:
        """Raise RuntimeError on the client's event loop, where whoever waits waits for ever."""

    def whereabouts(self) -> str:
        """Who hosts the queues, and when they were last heard of: for errors of those who waited in vain."""


class TaskFuture(Future):  # type: ignore[type-arg]
    """The future of one call."""

    _made = (1, 0)  # attempts and life, of one whose value was taken from its piece; set where they are others

    def __init__(self, home: Home, number: int, condition: threading.Condition) -> None:
        # not super().__init__: a Condition of its own for each future costs more than all the rest
        self._condition = condition
        self._state = PENDING
        self._result = None
        self._exception = None
        self._waiters: list[Any] = []
        self._done_callbacks: list[Callable[..., Any]] = []
        self._home = home
        self.number = number
        self._piece: Piece | None = None
        self._index = 0

    @property
    def key(self) -> str:
        """Names the task in the cluster."""
        return task_key(self._home.client_id, self.number)

    @property
    def traceback(self) -> str | None:
        """The remote traceback of a task that failed, as text; None before, and for one that succeeded."""
        piece = self._piece
        return None if piece is None else piece.text(self._index)

    @property
    def attempts(self) -> int:
        """How often it was tried, once it has ended: 1 if it succeeded at once, 0 if it never ran, and before."""
        if self._state not in _DONE:
            return 0
        piece = self._piece
        return self._made[0] if piece is None else piece.attempts(self._index)

    @property
    def life(self) -> int:
        """How often it had been a dead letter that was requeued, once it has ended; 0 before."""
        piece = self._piece
        return self._made[1] if piece is None else piece.life

    def __repr__(self) -> str:
        state = "pending" if self._state == PENDING else "cancelled" if self.cancelled() else "finished"
        return f"<TaskFuture {self.key} {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} does not leave its process: send its key, and ask pool.get_future(key) there")

    def cancel(self) -> bool:
        """Try to cancel the task. True: it will not run, and no outcome will come.

        One round trip, 5 s at most. False: it runs, has ended, or may have begun; if it turns out that it has not, it
        is cancelled all the same. On the client's event loop this only asks, and returns False.
        """
        return self.cancelled() or (self._state not in _DONE and self._home.cancel_future(self))

    def __await__(self) -> Generator[Any, None, Any]:
        """The value, awaited on any event loop."""
        return asyncio.wrap_future(self).__await__()

    async def cancel_async(self) -> bool:
        """As `cancel`, with its answer, on the client's event loop."""
        return self.cancelled() or (self._state not in _DONE and await self._home.cancel_future_async(self))

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Call `fn(future)` when the task has ended: in a thread of ours, or here and now if it has already."""
        with self._condition:
            pending = self._state not in _DONE
            if pending:
                self._done_callbacks.append(fn)
                _awaited.add(self)
        if not pending:
            super().add_done_callback(fn)

    def result(self, timeout: float | None = None) -> Any:
        """The value, or the exception raised; `TimeoutError` after `timeout` seconds."""
        try:
            error = self.exception(timeout)
            if error is not None:
                raise error
            return self._value()
        finally:
            self = None  # type: ignore[assignment]  # break the cycle of exception, traceback and future

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The exception the task ended with, or None; `TimeoutError` after `timeout` seconds."""
        self._await(timeout)
        if self._state == CANCELLED_AND_NOTIFIED:
            raise CancelledError
        piece = self._piece
        if self._exception is None and piece is not None and piece.failed(self._index):
            self._exception = piece.error(self._index, self.key)
        return self._exception

    def _value(self) -> Any:
        piece = self._piece
        if piece is None:
            return self._result
        value = piece.value(self._index)
        if piece.given:
            if self._piece is None:  # another thread has taken it meanwhile
                return self._result
            self._result = value
            if piece.retried:
                self._made = piece.attempts(self._index), piece.life
            self._piece = None
            piece.let_go(self._index)
        return value

    def _await(self, timeout: float | None) -> None:
        """A loop: the Condition is shared, so another's end wakes this too."""
        if self._state in _DONE:
            return
        if timeout is None or timeout > 0:
            self._home.check_may_wait()
        if nested.inside_task():
            nested.warn_of_waiting()
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._condition:
            while self._state not in _DONE:
                left = None if deadline is None else deadline - time.monotonic()
                if (left is not None and left <= 0) or not self._condition.wait(left):
                    if self._state in _DONE:
                        return
                    where = self._home.whereabouts()
                    raise WaitTimeout(f"task {self.key} has not ended within {timeout} s; {where}")

    def _end(self, piece: Piece, index: int) -> bool:
        """Called with the Condition held. True: there are callbacks to run."""
        if self._state in _DONE:
            return False
        self._piece, self._index = piece, index
        if piece.end == End.CANCELLED:
            self._state = CANCELLED_AND_NOTIFIED
            for waiter in self._waiters:
                waiter.add_cancelled(self)
        else:
            self._state = FINISHED
            for waiter in self._waiters:
                (waiter.add_exception if piece.failed(index) else waiter.add_result)(self)
        if not self._done_callbacks:
            return False
        _awaited.discard(self)
        return True

    def _call_back(self) -> None:
        self._home.callbacks.call(self._invoke_callbacks)  # type: ignore[attr-defined]


class KeyedFuture(TaskFuture):
    """The future of a call that has a key of its own."""

    def __init__(self, home: Home, number: int, condition: threading.Condition, key: str) -> None:
        super().__init__(home, number, condition)
        self._key = key

    @property
    def key(self) -> str:
        """Names the task in the cluster."""
        return self._key


class FoundFuture(KeyedFuture):
    """The future of a task that was asked for by its key, whoever submitted it."""


class FutureSink:
    """Futures of single calls that travelled as one batch. `discard`: nobody reads what they return."""

    __slots__ = ("_discard", "_futures", "keeps")

    def __init__(self, futures: Sequence[TaskFuture], *, keeps: bool = True, discard: bool = False) -> None:
        self._futures = futures
        self._discard = discard
        self.keeps = keeps

    def deliver(self, delivery: Delivery) -> None:
        """These messages ended."""
        piece = Piece(delivery.outcome, given=True, discard=self._discard)
        for lo, hi in delivery.runs:
            self._finish(delivery.shift + lo, delivery.shift + hi, piece, lo)

    def lose(self, lo: int, hi: int, error: BaseException) -> None:
        """The messages `lo` to `hi` end with `error`."""
        self._finish(lo, hi, LostPiece(error), 0)
        for future in self._futures[lo:hi]:
            if isinstance(future, KeyedFuture):
                future._home.unname_task(future.number)

    def _finish(self, lo: int, hi: int, piece: Piece, index: int) -> None:
        futures = self._futures[lo:hi]
        called: list[TaskFuture] = []
        at = 0
        while at < len(futures):
            condition = futures[at]._condition
            with condition:
                while at < len(futures) and futures[at]._condition is condition:
                    if futures[at]._end(piece, index + at):
                        called.append(futures[at])
                    at += 1
                condition.notify_all()
        for future in called:
            future._call_back()
