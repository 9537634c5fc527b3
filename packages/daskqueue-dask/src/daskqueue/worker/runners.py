"""Run consecutive elements of one batch with one function, and tell how each ended.

A job is built on the event loop, run in a worker's thread (`run`) or on the private loop (`run_async`), and watched and
shortened from the event loop meanwhile. It knows nothing of Dask: what makes `get_worker()` work comes in as a context
manager.

The fast path is `out.extend(starmap(fn, elements))`, resumed after each exception: 32 ns a task, failures isolated. Its
parts are visible from outside for free: `len(out)` is the index of the element that runs, and `list(iterator)` takes
away, atomically, what has not begun.

Not here: what to lease, how to acknowledge (`consumer_actor`); how things are pickled (`wire.calls`).

Invariants:
- Nothing that a task raises, returns or is made of ends the thread or touches another element: `run` does not raise.
- Executed elements are a prefix: the first `count` less what `take_rest` took.
- Unpickling is user code (imports, `__setstate__`) and happens where the task runs, never on the worker's event loop.
- Each coroutine runs in an asyncio task of its own, so what it does to its current task stays with it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from inspect import isawaitable
from itertools import starmap
from operator import length_hint
from types import CoroutineType
from typing import Any, NamedTuple

from daskqueue.wire.calls import encode_values, load_column, load_elements
from daskqueue.wire.errors import TaskFailure, encode_error
from daskqueue.wire.functions import Buffer, Call, Style, is_async_callable, load_call, read_header
from daskqueue.worker.async_loop import PrivateLoop

__all__ = ["Job", "JobReport", "Loaded"]

Context = Callable[[str], AbstractContextManager[Any]]


class JobReport(NamedTuple):
    """What came of a job, or of the elements from `start` on; positions count from there."""

    #: one pickle of the values of the elements that were executed, None where one failed; empty if not kept
    values: bytes
    failures: tuple[TaskFailure, ...]
    #: how many elements were executed
    executed: int
    #: from reading the elements to having written the values
    seconds: float
    #: the first element this speaks of: those before were harvested
    start: int = 0


class Loaded(NamedTuple):
    """What a job runs: `fn` of each element, spread over its arguments or as the one argument."""

    fn: Callable[..., Any]
    elements: Sequence[Any]
    spread: bool


class _Failed(NamedTuple):
    blob: bytes
    text: str


class Job:
    """Elements lo..hi of one batch. `run` or `run_async` once; `take_rest` at any time from another thread.

    Attributes
    ----------
    count: elements given to it
    started_at: `time.monotonic()` when it began to run, None before
    """

    __slots__ = (
        "_context", "_cut", "_failures", "_harvested", "_iterator", "_keep_values", "_load", "_lock", "_out", "_over",
        "_private_loop",
        "count", "is_async", "name", "started_at",
    )  # fmt: skip

    def __init__(
        self,
        load: Callable[[], Loaded],
        count: int,
        *,
        name: str,
        is_async: bool,
        context: Context = nullcontext,
        private_loop: PrivateLoop | None = None,
        keep_values: bool = True,
    ) -> None:
        self.count = count
        self.name = name
        self.is_async = is_async
        self.started_at: float | None = None
        self._load = load
        self._context = context
        self._private_loop = private_loop
        self._keep_values = keep_values
        self._lock = threading.Lock()
        self._iterator: Iterator[Any] | None = None
        self._cut = 0
        self._harvested = 0
        self._over = False
        self._out: list[Any] = []
        self._failures: list[TaskFailure] = []

    @classmethod
    def of_calls(
        cls,
        shared: Buffer,
        body: Buffer,
        lengths: Buffer | None,
        lo: int,
        hi: int,
        *,
        context: Context = nullcontext,
        private_loop: PrivateLoop | None = None,
        keep_values: bool = True,
    ) -> Job:
        """Calls as the client encoded them; raises FunctionLoadError if the head of the batch cannot be read."""
        header = read_header(shared)

        def load() -> Loaded:
            call = load_call(shared)
            if call.style is Style.COLUMN and lengths is None:
                return Loaded(call.fn, load_column(body, lo, hi), False)
            return Loaded(_applied(call), load_elements(body, lengths, lo, hi), True)

        return cls(
            load, hi - lo, name=header.name, is_async=header.is_async,
            context=context, private_loop=private_loop, keep_values=keep_values,
        )  # fmt: skip

    @classmethod
    def of_items(
        cls,
        process_item: Callable[[Any], Any],
        body: Buffer,
        lengths: Buffer | None,
        lo: int,
        hi: int,
        *,
        name: str = "process_item",
        context: Context = nullcontext,
        private_loop: PrivateLoop | None = None,
        keep_values: bool = False,
    ) -> Job:
        """Items for a custom consumer's bound method. What it returns is dropped unless asked for."""

        def load() -> Loaded:
            return Loaded(process_item, load_elements(body, lengths, lo, hi), True)

        return cls(
            load, hi - lo, name=name, is_async=is_async_callable(process_item),
            context=context, private_loop=private_loop, keep_values=keep_values,
        )  # fmt: skip

    @property
    def finished(self) -> int:
        """How many elements have ended, which is the index of the one that runs."""
        return len(self._out)

    def take_rest(self) -> int:
        """Take away what has not begun and say how many that were: all of it if the job has not begun."""
        with self._lock:
            if self._iterator is None:
                taken, self._cut = self.count - self._cut, self.count
            else:
                taken = len(list(self._iterator))
                self._cut += taken
            return taken

    def harvest(self) -> JobReport | None:
        """What has ended so far, while the job goes on; from another thread. Its own report leaves that out then."""
        with self._lock:
            start, stop = self._harvested, len(self._out)
            values = self._out[start:stop]
            if self._over or stop == start or CoroutineType in set(map(type, values)):
                return None
            self._harvested = stop
            failures = [
                failure._replace(position=failure.position - start)
                for failure in self._failures
                if start <= failure.position < stop
            ]
        data, unpicklable = encode_values(values) if self._keep_values else (b"", [])
        failures = sorted([*failures, *unpicklable], key=_position)
        return JobReport(data, tuple(failures), len(values), 0.0, start)

    # ------------------------------------------------------------------------------------------------- in a thread

    def run(self) -> JobReport:
        """Run in this thread; an `async def` function runs on the private loop while this thread waits."""
        if self.is_async:
            return self._loop_for_coroutines().submit(self.run_async()).result()
        began = self._begin()
        failures = self._failures
        with self._context(self.name):
            fn, elements, spread = self._loaded()
            self._run_elements(fn, self._open(elements), spread, failures)
            return self._report(failures, began, self._settle_in_thread)

    def _run_elements(
        self, fn: Callable[..., Any], elements: Iterator[Any], spread: bool, failures: list[TaskFailure]
    ) -> None:
        out = self._out
        while True:
            try:
                out.extend(starmap(fn, elements) if spread else map(fn, elements))
            except BaseException as error:  # SystemExit too is only this task's
                failures.append(TaskFailure(len(out), *encode_error(error)))
                out.append(None)
                continue
            with self._lock:  # so that a tail just taken is counted
                begun = self.count - self._cut - length_hint(elements)
            if len(out) == begun:
                return
            # `extend` takes a StopIteration that a task raises for the end of its input
            stop = RuntimeError(f"{self.name} raised StopIteration")
            failures.append(TaskFailure(len(out), *encode_error(stop)))
            out.append(None)

    def _settle_in_thread(self, failures: list[TaskFailure]) -> None:
        """Await, on the private loop, the coroutines that a plain function (a lambda, say) returned."""
        indexes = [index for index, value in enumerate(self._out) if type(value) is CoroutineType]
        if indexes:
            self._loop_for_coroutines().submit(self._settle_returned(indexes, failures)).result()

    # ----------------------------------------------------------------------------------------- on the private loop

    async def run_async(self) -> JobReport:
        """Await the calls one after the other; to be awaited on the private loop. Raises only our own cancellation."""
        began = self._begin()
        out, failures = self._out, self._failures
        with self._context(self.name):
            fn, elements, spread = self._loaded()
            for element in self._open(elements):
                await self._one(partial(_invoke, fn, element) if spread else partial(fn, element), failures)
            with self._lock:
                assert len(out) == self.count - self._cut
            return self._report(failures, began, None)

    async def _one(self, start: Callable[[], Any], failures: list[TaskFailure]) -> None:
        value = await _in_own_task(start)
        if type(value) is _Failed:
            failures.append(TaskFailure(len(self._out), *value))
            value = None
        self._out.append(value)

    async def _settle_returned(self, indexes: list[int], failures: list[TaskFailure]) -> None:
        for index in indexes:
            value = await _in_own_task(partial(_identity, self._out[index]))
            if type(value) is _Failed:
                failures.append(TaskFailure(index, *value))
                value = None
            self._out[index] = value

    # ------------------------------------------------------------------------------------------------------ common

    def _begin(self) -> float:
        assert self.started_at is None, "a job runs once"
        self.started_at = time.monotonic()
        return time.perf_counter()

    def _loaded(self) -> Loaded:
        if self._cut:  # withdrawn before it began: do not import a module for nothing
            return Loaded(_identity, [], False)
        try:
            return self._load()
        except BaseException as error:  # the function of all of them: every element fails with it
            return Loaded(partial(_raise, error), [()] * self.count, True)

    def _open(self, elements: Sequence[Any]) -> Iterator[Any]:
        with self._lock:
            self._iterator = iter(() if self._cut else elements)
            return self._iterator

    def _loop_for_coroutines(self) -> PrivateLoop:
        if self._private_loop is None:
            raise RuntimeError("this job was built without an event loop for coroutines: pass private_loop=.")
        return self._private_loop

    def _report(
        self,
        failures: list[TaskFailure],
        began: float,
        settle: Callable[[list[TaskFailure]], None] | None,
    ) -> JobReport:
        with self._lock:
            self._over = True
            start = self._harvested
            del self._out[:start]
            failures[:] = [f._replace(position=f.position - start) for f in failures if f.position >= start]
        out, values = self._out, b""
        if not self._keep_values:
            # nobody pickles these, so a coroutine would go unnoticed
            if settle is not None and CoroutineType in set(map(type, out)):
                settle(failures)
        else:
            values, unpicklable = encode_values(out, mend=partial(settle, failures) if settle is not None else None)
            failures += unpicklable
        failures.sort(key=_position)
        return JobReport(values, tuple(failures), len(out), time.perf_counter() - began, start)


def _applied(call: Call) -> Callable[..., Any]:
    return partial(_apply, call.fn) if call.style is Style.KWARGS else call.fn


def _apply(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return fn(*args, **kwargs)


def _invoke(fn: Callable[..., Any], element: Any) -> Any:
    return fn(*element)


def _identity(value: Any) -> Any:
    return value


def _raise(error: BaseException) -> Any:
    raise error.with_traceback(None)


def _position(failure: TaskFailure) -> int:
    return failure.position


async def _in_own_task(start: Callable[[], Any]) -> Any:
    """Run `await start()` in an asyncio task of its own; its value, or a `_Failed`.

    Raises only when the task that awaits this is itself cancelled, after the inner one has ended.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    task = loop.create_task(_settled(start))
    task.add_done_callback(partial(_wake, ended))
    try:
        await ended
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait((task,))
        raise
    if task.cancelled():  # cancelled before its first step
        return _Failed(*encode_error(asyncio.CancelledError()))
    return task.result()


def _wake(waiter: asyncio.Future[None], _: asyncio.Task[Any]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def _settled(start: Callable[[], Any]) -> Any:
    # BaseException: asyncio would let SystemExit and KeyboardInterrupt out of the loop. A CancelledError here is the
    # coroutine's own doing; when it is ours, `_in_own_task` no longer looks at the outcome.
    try:
        value = start()
        return await value if isawaitable(value) else value
    except BaseException as error:
        return _Failed(*encode_error(error))
