"""`TaskBatch`: many tasks in one object, of which a future is made when it is touched.

A batch of a put costs what its tasks cost together, and four bytes a task once they have not all ended at once; beside
that the bytes of the results. Deliveries come on the client's event loop; readers are other
threads, or that loop with an asynchronous client.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from array import array
from bisect import bisect_right
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple

from daskqueue.client.futures import Home, TaskFuture
from daskqueue.client.naming import task_key
from daskqueue.client.pieces import LostPiece, Piece
from daskqueue.client.timeouts import WaitTimeout
from daskqueue_core.batch import Run
from daskqueue_core.outcomes import End
from daskqueue_core.producer import Delivery

__all__ = ["Counts", "TaskBatch"]

_PENDING: Final = 0


class Counts(NamedTuple):
    """How many tasks of a batch are where."""

    pending: int
    succeeded: int
    failed: int


class TaskBatch(Sequence[TaskFuture]):
    """Many tasks in one object: `len`, index (a future, made when touched), iteration as completed.

    `results()` gives the values in order, `failures()` the exceptions of those that failed.
    """

    def __init__(self, home: Home, *, keeps: bool = False, discard: bool = False) -> None:
        self.keeps = keeps
        self._discard = discard  # nobody reads what they return
        self._home = home
        self._condition = threading.Condition()
        self._numbers: list[tuple[int, int]] = []  # (index of the first task, its number) of each batch put
        self._size = 0
        self._slots: list[
            int | array[int]
        ] = []  # of each batch put: the number of its tasks' piece, or an array of them
        self._pieces: list[tuple[Piece, int]] = []  # with the index of the outcome's first message
        self._completed: list[Run] = []
        self._news: list[asyncio.Future[None]] = []
        self._done = 0
        self._failed = 0
        self._futures: weakref.WeakValueDictionary[int, TaskFuture] = weakref.WeakValueDictionary()

    # -- for the submitter and the collector

    def extend(self, count: int, number: int) -> int:
        """`count` more tasks, the client's numbers from `number` on; returns the index of the first."""
        with self._condition:
            index = self._size
            self._numbers.append((index, number))
            self._slots.append(_PENDING)
            self._size += count
            return index

    def deliver(self, delivery: Delivery) -> None:
        """These messages ended."""
        piece, shift = Piece(delivery.outcome, discard=self._discard), delivery.shift
        failed = [index for index, _, _ in delivery.outcome.errors] if piece.end == End.RUN else None
        for lo, hi in delivery.runs:
            count = hi - lo if failed is None else sum(lo <= index < hi for index in failed)
            self._finish(shift + lo, shift + hi, piece, shift, count)

    def lose(self, lo: int, hi: int, error: BaseException) -> None:
        """The messages `lo` to `hi` end with `error`."""
        self._finish(lo, hi, LostPiece(error), lo, hi - lo)

    def _finish(self, lo: int, hi: int, piece: Piece, shift: int, failed: int) -> None:
        called: list[TaskFuture] = []
        with self._condition:
            self._pieces.append((piece, shift))
            self._mark(lo, hi, len(self._pieces))
            self._completed.append((lo, hi))
            self._done += hi - lo
            self._failed += failed
            if self._futures:
                for index in self._touched(lo, hi):
                    future = self._futures.get(index)
                    if future is not None and future._end(piece, index - shift):
                        called.append(future)
            self._condition.notify_all()
        for future in called:
            future._call_back()
        if self._news:
            for news in self._news:
                if not news.done():
                    news.set_result(None)
            self._news.clear()

    def _mark(self, lo: int, hi: int, slot: int) -> None:
        """The tasks from `lo` to `hi` have ended with piece `slot`. A batch that ends as one costs nothing a task."""
        at = self._batch_of(lo)
        while lo < hi:
            first, stop = self._numbers[at][0], self._numbers[at + 1][0] if at + 1 < len(self._numbers) else self._size
            until = min(hi, stop)
            if (lo, until) == (first, stop):
                self._slots[at] = slot
            else:
                slots = self._slots[at]
                if isinstance(slots, int):
                    slots = self._slots[at] = array("I", [slots]) * (stop - first)
                slots[lo - first : until - first] = array("I", [slot]) * (until - lo)
            lo, at = until, at + 1

    def _batch_of(self, index: int) -> int:
        return bisect_right(self._numbers, index, key=itemgetter(0)) - 1

    def _slot(self, index: int) -> int:
        """The number of a task's piece."""
        at = self._batch_of(index)
        slots = self._slots[at]
        return slots if isinstance(slots, int) else slots[index - self._numbers[at][0]]

    def _touched(self, lo: int, hi: int) -> Sequence[int]:
        """The tasks from `lo` to `hi` that may have a future."""
        if hi - lo <= len(self._futures):
            return range(lo, hi)
        return [index for index in list(self._futures) if lo <= index < hi]

    # -- for its user

    def __len__(self) -> int:
        return self._size

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
                future = TaskFuture(self._home, self._number(index), self._condition)
                self._futures[index] = future
                slot = self._slot(index)
                if slot != _PENDING:
                    piece, shift = self._pieces[slot - 1]
                    future._end(piece, index - shift)
            return future

    def _number(self, index: int) -> int:
        first, number = self._numbers[self._batch_of(index)]
        return number + index - first

    def __iter__(self) -> Iterator[TaskFuture]:
        """Futures as they complete."""
        seen = 0
        given = 0
        while given < len(self):
            if seen == len(self._completed):
                self._home.check_may_wait()
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
        if self._done < self._size and (timeout is None or timeout > 0):
            self._home.check_may_wait()
        with self._condition:
            return self._condition.wait_for(lambda: self._done >= self._size, timeout)

    def counts(self) -> Counts:
        """How many are where."""
        with self._condition:
            return Counts(self._size - self._done, self._done - self._failed, self._failed)

    def cancel(self) -> int:
        """Try to cancel what has not ended, as `TaskFuture.cancel` does. Returns how many ended by it at once."""
        return self._home.cancel_batch(self)

    async def wait_async(self) -> None:
        """Wait until all have ended, on the client's event loop."""
        while self._done < self._size:
            news = asyncio.get_running_loop().create_future()
            self._news.append(news)
            await news

    def __await__(self) -> Generator[Any, None, list[Any]]:
        """All values in order, on the client's event loop."""

        async def all_of_them() -> list[Any]:
            await self.wait_async()
            return self.results()

        return all_of_them().__await__()

    async def __aiter__(self) -> AsyncIterator[TaskFuture]:
        """Futures as they complete, on the client's event loop."""
        seen = given = 0
        while given < len(self):
            while seen == len(self._completed):
                news = asyncio.get_running_loop().create_future()
                self._news.append(news)
                await news
            lo, hi = self._completed[seen]
            seen += 1
            for index in range(lo, hi):
                given += 1
                yield self[index]

    def results(self, timeout: float | None = None) -> list[Any]:
        """All values in order; raises the first failed task's exception, `TimeoutError` after `timeout` seconds."""
        if not self.wait(timeout):
            raise self._late(timeout)
        out: list[Any] = []
        for index, stop, piece, shift in self._in_order():
            values = piece.values(index - shift, stop - shift)
            if values is not None:
                out += values
                continue
            for at in range(index - shift, stop - shift):
                error = self._error(piece, at, shift)
                if error is not None:
                    raise error
                out.append(piece.value(at))
        return out

    def failures(self, timeout: float | None = None) -> Mapping[int, BaseException]:
        """Exceptions by index, of those that failed, once all have ended."""
        if not self.wait(timeout):
            raise self._late(timeout)
        out: dict[int, BaseException] = {}
        for index, stop, piece, shift in self._in_order():
            for at in range(index, stop):
                error = self._error(piece, at - shift, shift)
                if error is not None:
                    out[at] = error
        return out

    def _late(self, timeout: float | None) -> TimeoutError:
        return WaitTimeout(f"{self!r}: not all have ended within {timeout} s; {self._home.whereabouts()}")

    def _error(self, piece: Piece, at: int, shift: int) -> BaseException | None:
        """What message `at` of a piece failed with."""
        if not piece.failed(at):
            return None
        return piece.error(at, task_key(self._home.client_id, self._number(at + shift)))

    def _in_order(self) -> Iterator[tuple[int, int, Piece, int]]:
        """Runs of tasks with the piece they share: `(index, stop, piece, index of the outcome's first message)`."""
        for lo, hi in sorted(self._completed):
            piece, shift = self._pieces[self._slot(lo) - 1]
            yield lo, hi, piece, shift
