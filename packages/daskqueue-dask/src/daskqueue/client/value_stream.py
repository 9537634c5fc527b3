"""`ValueStream`: the values of a `map`, in order while they come; what was read is gone.

Only what has arrived and was not read is held, so a stream may be endless. With `buffersize` the input is pulled as
values are yielded. A generator that is closed, or that raises, cancels what it had submitted.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from typing import Any, Final

from daskqueue.client.futures import Home
from daskqueue.client.pieces import LostPiece, Piece
from daskqueue.client.timeouts import WaitTimeout
from daskqueue_core.producer import Delivery

__all__ = ["ValueStream"]

CHUNK: Final = 1000

Submit = Callable[[int], int]
"""Submits up to so many more elements; returns how many there were."""


class ValueStream:
    """A sink whose values are read once, in order."""

    keeps = False

    def __init__(self, home: Home) -> None:
        self._home = home
        self._condition = threading.Condition()
        self._arrived: dict[
            int, tuple[int, Piece, int]
        ] = {}  # start of a run -> its stop, its piece, the piece's shift
        self._size = 0
        self._read = 0  # every run before this was read
        self._news: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        return self._size

    # -- for the submitter and the collector

    def extend(self, count: int, number: int) -> int:
        """`count` more tasks; returns the index of the first."""
        index = self._size
        self._size += count
        return index

    def deliver(self, delivery: Delivery) -> None:
        """These messages ended."""
        piece, shift = Piece(delivery.outcome), delivery.shift
        self._arrive([(shift + lo, (shift + hi, piece, shift)) for lo, hi in delivery.runs])

    def lose(self, lo: int, hi: int, error: BaseException) -> None:
        """The messages `lo` to `hi` end with `error`."""
        self._arrive([(lo, (hi, LostPiece(error), lo))])

    def _arrive(self, runs: list[tuple[int, tuple[int, Piece, int]]]) -> None:
        with self._condition:
            self._arrived.update(runs)
            if self._read in self._arrived:
                self._condition.notify_all()
        for news in self._news:
            if not news.done():
                news.set_result(None)
        self._news.clear()

    # -- for its reader

    def values(self, submit: Submit | None, buffersize: int | None, timeout: float | None) -> ValueIterator:
        """Values in order. `submit` adds tasks while fewer than `buffersize` are out; without it all are submitted."""
        return ValueIterator(self._runs(submit, buffersize, timeout), self._abandon)

    def _runs(
        self, submit: Submit | None, buffersize: int | None, timeout: float | None
    ) -> Generator[Iterable[Any], None, None]:
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            for _ in self._turns(submit, buffersize):
                values, error = self._next_run(self._await(deadline, timeout))
                yield values
                if error is not None:
                    raise error
        finally:
            self._abandon()

    async def values_async(
        self, submit: Submit | None, buffersize: int | None, timeout: float | None
    ) -> AsyncIterator[Any]:
        """As `values`, on the client's event loop."""
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            for _ in self._turns(submit, buffersize):
                while self._read not in self._arrived:
                    news = asyncio.get_running_loop().create_future()
                    self._news.append(news)
                    try:
                        await asyncio.wait_for(news, None if deadline is None else deadline - time.monotonic())
                    except asyncio.TimeoutError:
                        raise self._late(timeout) from None
                values, error = self._next_run(self._arrived.pop(self._read))
                for value in values:
                    yield value
                if error is not None:
                    raise error
        finally:
            self._abandon()

    def _turns(self, submit: Submit | None, buffersize: int | None) -> Iterator[None]:
        """Keeps the buffer filled; a turn for each run to be read."""
        step = CHUNK if buffersize is None else max(1, min(CHUNK, buffersize // 4))
        more = submit is not None
        while True:
            while (
                more and submit is not None and buffersize is not None and self._size - self._read <= buffersize - step
            ):
                more = submit(step) == step
            if self._read == self._size:
                return
            yield

    def _await(self, deadline: float | None, timeout: float | None) -> tuple[int, Piece, int]:
        if self._read not in self._arrived:
            self._home.check_may_wait()
        with self._condition:
            while (run := self._arrived.pop(self._read, None)) is None:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise self._late(timeout)
                self._condition.wait(left)
            return run

    def _late(self, timeout: float | None) -> TimeoutError:
        where = self._home.whereabouts()
        return WaitTimeout(f"task {self._read} of a map has not ended within {timeout} s; {where}")

    def _next_run(self, run: tuple[int, Piece, int]) -> tuple[Iterable[Any], BaseException | None]:
        """The values up to the first error, and that."""
        stop, piece, shift = run
        start, self._read = self._read, stop
        error: BaseException | None = None
        values = piece.values(start - shift, stop - shift)
        if values is None:
            values = []
            for at in range(start - shift, stop - shift):
                error = piece.error(at)
                if error is not None:
                    break
                values.append(piece.value(at))
        values.reverse()  # each is let go of when it is yielded
        return itertools.starmap(values.pop, itertools.repeat((), len(values))), error

    def _abandon(self) -> None:
        if self._read < self._size:
            self._read = self._size
            self._arrived.clear()
            self._home.abandon(self)


class ValueIterator(Iterator[Any]):
    """What `map` returns. Iterating runs in C from value to value; `close` cancels what has not ended."""

    def __init__(self, runs: Generator[Iterable[Any], None, None], abandon: Callable[[], None]) -> None:
        self._runs = runs
        self._abandon = abandon
        self._values: Iterator[Any] = itertools.chain.from_iterable(runs)

    def __iter__(self) -> Iterator[Any]:
        return self._values

    def __next__(self) -> Any:
        return next(self._values)

    def close(self) -> None:
        """Nothing more will be read."""
        self._values = iter(())
        self._runs.close()
        self._abandon()  # a generator that was never asked for anything does nothing when it is closed
