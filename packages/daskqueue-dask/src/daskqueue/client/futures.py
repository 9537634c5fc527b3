"""What a submitter holds: a `TaskFuture` for one call, a `TaskBatch` for many.

A `TaskFuture` is a `concurrent.futures.Future`, so that `wait`, `as_completed` and `asyncio.wrap_future` of the
standard library work with it; it shares its Condition with its neighbours and decodes its value when it is asked for.
A `TaskBatch` costs four bytes a task beside the bytes of the results; its futures are made when they are touched.

A *sink* is what the collector delivers to: `FutureSink` or `TaskBatch`. Deliveries come on the client's event loop.
"""

from __future__ import annotations

import threading
import time
import weakref
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING
from typing import Any, Final, NamedTuple, Protocol

from daskqueue.client.callbacks import CallbackThread
from daskqueue.wire.calls import decode_values
from daskqueue.wire.errors import decode_error
from daskqueue_core.batch import Buffer, Run
from daskqueue_core.errors import WorkerCrashed
from daskqueue_core.outcomes import End, Outcome
from daskqueue_core.producer import Delivery

__all__ = ["FutureSink", "Piece", "Sink", "TaskBatch", "TaskFuture", "task_key"]

_DONE: Final = frozenset({CANCELLED_AND_NOTIFIED, FINISHED})


def task_key(client: int, number: int) -> str:
    """The key of a task that its client made."""
    return f"{client:016x}-{number}"


class Values:
    """Values of a run: one pickle, read when the first of them is asked for."""

    __slots__ = ("_blob", "_values")

    def __init__(self, blob: Buffer) -> None:
        self._blob: Buffer | None = blob
        self._values: list[Any] | None = None

    def get(self, index: int) -> Any:
        """The value at `index`; raises ResultLoadError."""
        return self.all()[index] if self._values is not None or self._blob else None

    def all(self) -> list[Any]:
        """All of them."""
        values = self._values
        if values is None:
            blob = self._blob
            values = self._values = decode_values(blob if blob is not None else b"")
            self._blob = None
        return values


class Piece:
    """An outcome with its values shared by all who read it."""

    __slots__ = ("_errors", "_values", "end")

    def __init__(self, outcome: Outcome) -> None:
        self.end = outcome.end
        self._errors = {index: (blob, text) for index, blob, text in outcome.errors} if outcome.errors else {}
        self._values = Values(outcome.values) if outcome.values else None

    def failed(self, index: int) -> bool:
        """Whether message `index` of the outcome has no value."""
        return self.end != End.RUN or index in self._errors

    def text(self, index: int) -> str | None:
        """The remote traceback."""
        error = self._errors.get(index)
        return None if error is None else error[1]

    def error(self, index: int) -> BaseException | None:
        """What message `index` failed with."""
        if self.end == End.CANCELLED:
            return CancelledError()
        if self.end == End.CRASHED:
            return WorkerCrashed("the worker died while it may have run this task; not retried: early_ack")
        error = self._errors.get(index)
        return None if error is None else decode_error(*error)

    def value(self, index: int) -> Any:
        """The value of message `index`, which has one."""
        return None if self._values is None else self._values.get(index)

    def values(self, lo: int, hi: int) -> list[Any] | None:
        """Values of messages `lo` to `hi` if they all have one."""
        if self.end != End.RUN or (self._errors and any(lo <= index < hi for index in self._errors)):
            return None
        return [None] * (hi - lo) if self._values is None else self._values.all()[lo:hi]


class _LostPiece(Piece):
    """Stands for messages that were lost with their queue."""

    __slots__ = ("_why",)

    def __init__(self, why: BaseException) -> None:
        super().__init__(Outcome(0, 0, 0))
        self._why = why
        self.end = End.CANCELLED if isinstance(why, CancelledError) else -1

    def error(self, index: int) -> BaseException:
        return self._why


class Sink(Protocol):
    """Who hears of outcomes."""

    keeps: bool
    """Whether the outcomes can be read again, by key."""

    def deliver(self, delivery: Delivery) -> None:
        """These messages ended."""

    def lose(self, lo: int, hi: int, error: BaseException) -> None:
        """The messages `lo` to `hi` of the sink end with `error`."""


class TaskFuture(Future):  # type: ignore[type-arg]
    """The future of one call."""

    def __init__(self, client: int, number: int, condition: threading.Condition, callbacks: CallbackThread) -> None:
        # not super().__init__: a Condition of its own for each future costs more than all the rest
        self._condition = condition
        self._state = PENDING
        self._result = None
        self._exception = None
        self._waiters: list[Any] = []
        self._done_callbacks: list[Callable[..., Any]] = []
        self._client = client
        self._callbacks = callbacks
        self.number = number
        self._piece: Piece | None = None
        self._index = 0

    @property
    def key(self) -> str:
        """Names the task in the cluster."""
        return task_key(self._client, self.number)

    @property
    def traceback(self) -> str | None:
        """The remote traceback of a task that failed, as text; None before, and for one that succeeded."""
        return None if self._piece is None else self._piece.text(self._index)

    def __repr__(self) -> str:
        state = "pending" if self._state == PENDING else "cancelled" if self.cancelled() else "finished"
        return f"<TaskFuture {self.key} {state}>"

    def cancel(self) -> bool:
        """Whether the task was cancelled: False, it may run."""
        return self.cancelled()

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
        if self._exception is None and self._piece is not None and self._piece.failed(self._index):
            self._exception = self._piece.error(self._index)
        return self._exception

    def _value(self) -> Any:
        return self._piece.value(self._index) if self._piece is not None else self._result

    def _await(self, timeout: float | None) -> None:
        """A loop: the Condition is shared, so another's end wakes this too."""
        if self._state in _DONE:
            return
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._condition:
            while self._state not in _DONE:
                left = None if deadline is None else deadline - time.monotonic()
                if (left is not None and left <= 0) or not self._condition.wait(left):
                    if self._state in _DONE:
                        return
                    raise TimeoutError(f"task {self.key} has not ended within {timeout} s")

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
        return bool(self._done_callbacks)

    def _call_back(self) -> None:
        self._callbacks.call(self._invoke_callbacks)  # type: ignore[attr-defined]


class FutureSink:
    """Futures of single calls that travelled as one batch."""

    __slots__ = ("_futures", "keeps")

    def __init__(self, futures: Sequence[TaskFuture], *, keeps: bool = True) -> None:
        self._futures = futures
        self.keeps = keeps

    def deliver(self, delivery: Delivery) -> None:
        """These messages ended."""
        piece = Piece(delivery.outcome)
        for lo, hi in delivery.runs:
            self._finish(delivery.shift + lo, delivery.shift + hi, piece, lo)

    def lose(self, lo: int, hi: int, error: BaseException) -> None:
        """The messages `lo` to `hi` end with `error`."""
        self._finish(lo, hi, _LostPiece(error), 0)

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


class Counts(NamedTuple):
    """How many tasks of a batch are where."""

    pending: int
    succeeded: int
    failed: int


class TaskBatch(Sequence[TaskFuture]):
    """Many tasks in one object: `len`, index (a future, made when touched), iteration as completed.

    `results()` gives the values in order, `failures()` the exceptions of those that failed.
    """

    def __init__(self, client: int, callbacks: CallbackThread, *, keeps: bool = False) -> None:
        self.keeps = keeps
        self._client = client
        self._callbacks = callbacks
        self._condition = threading.Condition()
        self._numbers: list[tuple[int, int]] = []  # (index of the first task, its number) of each batch put
        self._slots = array("I")  # a task -> its piece + 1; 0: pending
        self._pieces: list[tuple[Piece, int] | None] = [None]  # with the index of the outcome's first message
        self._completed: list[Run] = []
        self._done = 0
        self._failed = 0
        self._futures: weakref.WeakValueDictionary[int, TaskFuture] = weakref.WeakValueDictionary()

    # -- for the submitter and the collector

    def extend(self, count: int, number: int) -> int:
        """`count` more tasks, the client's numbers from `number` on; returns the index of the first."""
        with self._condition:
            index = len(self._slots)
            self._numbers.append((index, number))
            self._slots.frombytes(bytes(4 * count))
            return index

    def deliver(self, delivery: Delivery) -> None:
        """These messages ended."""
        piece, shift = Piece(delivery.outcome), delivery.shift
        failed = [index for index, _, _ in delivery.outcome.errors] if piece.end == End.RUN else None
        for lo, hi in delivery.runs:
            count = hi - lo if failed is None else sum(lo <= index < hi for index in failed)
            self._finish(shift + lo, shift + hi, piece, shift, count)

    def lose(self, lo: int, hi: int, error: BaseException) -> None:
        """The messages `lo` to `hi` end with `error`."""
        self._finish(lo, hi, _LostPiece(error), lo, hi - lo)

    def _finish(self, lo: int, hi: int, piece: Piece, shift: int, failed: int) -> None:
        called: list[TaskFuture] = []
        with self._condition:
            self._pieces.append((piece, shift))
            self._slots[lo:hi] = array("I", [len(self._pieces) - 1]) * (hi - lo)
            self._completed.append((lo, hi))
            self._done += hi - lo
            self._failed += failed
            if self._futures:
                for index, future in list(self._futures.items()):
                    if lo <= index < hi and future._end(piece, index - shift):
                        called.append(future)
            self._condition.notify_all()
        for future in called:
            future._call_back()

    # -- for its user

    def __len__(self) -> int:
        return len(self._slots)

    def __repr__(self) -> str:
        return f"<TaskBatch of {len(self)}: {self._done} done, {self._failed} failed>"

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"task {index} of a batch of {len(self)}")
        with self._condition:
            future = self._futures.get(index)
            if future is None:
                future = TaskFuture(self._client, self._number(index), self._condition, self._callbacks)
                self._futures[index] = future
                slot = self._slots[index]
                entry = self._pieces[slot]
                if slot and entry is not None:
                    future._end(entry[0], index - entry[1])
            return future

    def _number(self, index: int) -> int:
        for first, number in reversed(self._numbers):
            if first <= index:
                return number + index - first
        raise IndexError(index)

    def __iter__(self) -> Iterator[TaskFuture]:
        """Futures as they complete."""
        seen = 0
        given = 0
        while given < len(self):
            with self._condition:
                while seen == len(self._completed):
                    self._condition.wait()
                lo, hi = self._completed[seen]
            seen += 1
            for index in range(lo, hi):
                given += 1
                yield self[index]

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all have ended; False if they have not within `timeout` seconds."""
        with self._condition:
            return self._condition.wait_for(lambda: self._done >= len(self._slots), timeout)

    def counts(self) -> Counts:
        """How many are where."""
        with self._condition:
            return Counts(len(self._slots) - self._done, self._done - self._failed, self._failed)

    def results(self, timeout: float | None = None) -> list[Any]:
        """All values in order; raises the first task's exception, `TimeoutError` after `timeout` seconds."""
        return list(self.stream(timeout=timeout, consume=False))

    def failures(self, timeout: float | None = None) -> Mapping[int, BaseException]:
        """Exceptions by index, of those that failed, once all have ended."""
        if not self.wait(timeout):
            raise TimeoutError(f"{self!r}: not all have ended within {timeout} s")
        out: dict[int, BaseException] = {}
        for index, slot in enumerate(self._slots):
            entry = self._pieces[slot]
            if entry is not None and entry[0].failed(index - entry[1]):
                error = entry[0].error(index - entry[1])
                assert error is not None
                out[index] = error
        return out

    def stream(self, *, timeout: float | None = None, consume: bool = True, start: int = 0) -> Iterator[Any]:
        """Values in order as they come, up to what was submitted when the end is reached.

        With `consume` a value can be read once, and its bytes go when the values beside it were read.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        index = start
        while index < len(self._slots):
            slot, stop = self._await_run(index, deadline, timeout)
            entry = self._pieces[slot]
            assert entry is not None
            piece, shift = entry
            if consume:
                self._pieces[slot] = None
            values = piece.values(index - shift, stop - shift)
            if values is not None:
                yield from values
            else:
                for at in range(index, stop):
                    if piece.failed(at - shift):
                        error = piece.error(at - shift)
                        assert error is not None
                        raise error
                    yield piece.value(at - shift)
            index = stop

    def _await_run(self, index: int, deadline: float | None, timeout: float | None) -> tuple[int, int]:
        """The piece of task `index`, and where its run ends."""
        slots = self._slots
        with self._condition:
            while not (slot := slots[index]):
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(f"task {index} of a batch has not ended within {timeout} s")
                self._condition.wait(left)
            stop = index + 1
            size = len(slots)
            while stop < size and slots[stop] == slot:
                stop += 1
            return slot, stop
