"""Run consecutive elements of one batch with one function, and tell how each ended.

A job is built on the event loop, run in a worker's thread (`run`) or on the private loop (`run_async`), and watched,
shortened and cancelled from the event loop meanwhile. It knows nothing of Dask: what makes `get_worker()` work comes in
as a context manager.

The fast path is `out.extend(starmap(fn, elements))`, resumed after each exception: 32 ns a task, failures isolated. Its
parts are visible from outside for free: `len(out)` is the index of the element that runs, and `list(iterator)` takes
away, atomically, what has not begun. With a timeout, and from the moment something is to be cancelled, elements are run
one by one; a cancel gets there by giving the job another iterator over what the first one had left.

Not here: what to lease, how to acknowledge (`consumer_actor`); how things are pickled (`wire.calls`); interrupting what
is over its timeout (`deadlines`); whether a failure is tried again (`verdicts`).

Invariants:
- Nothing that a task raises, returns or is made of ends the thread or touches another element: `run` does not raise.
- Unpickling is user code (imports, `__setstate__`) and happens where the task runs, never on the worker's event loop.
- Each coroutine runs in an asyncio task of its own, so what it does to its current task stays with it.

The others are in `job_base`, with what may be done to a job from outside.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import isawaitable
from itertools import starmap
from operator import length_hint
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from daskqueue.current import running
from daskqueue.wire.functions import Buffer, is_async_callable, read_header
from daskqueue.worker.async_loop import PrivateLoop
from daskqueue.worker.deadlines import WATCHDOG, Watch, thread_watch
from daskqueue.worker.job_base import Failed, JobBase, identity, task_of
from daskqueue.worker.job_terms import JobOptions, JobReport, failures_from
from daskqueue.worker.loading import Loaded, load_calls, load_items
from daskqueue.worker.supervisor import Supervisor
from daskqueue_core.errors import TaskTimeout

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Job", "JobOptions", "JobReport", "Loaded"]


class Job(JobBase):
    """Elements lo..hi of one batch. `run` or `run_async` once; the other methods at any time from another thread."""

    __slots__ = ()

    @classmethod
    def of_calls(
        cls,
        shared: Buffer,
        body: Buffer,
        lengths: Buffer | None,
        lo: int,
        hi: int,
        *,
        keep_values: bool = True,
        **options: Unpack[JobOptions],
    ) -> Job:
        """Calls as the client encoded them; raises FunctionLoadError if the head of the batch cannot be read."""
        header = read_header(shared)
        return cls(
            load_calls(shared, body, lengths, lo, hi), hi - lo,
            name=header.name, is_async=header.is_async, in_block=lengths is None, keep_values=keep_values, **options,
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
        keep_values: bool = False,
        **options: Unpack[JobOptions],
    ) -> Job:
        """Items for a custom consumer's bound method. What it returns is dropped unless asked for."""
        return cls(
            load_items(process_item, body, lengths, lo, hi), hi - lo,
            name=name, is_async=is_async_callable(process_item), in_block=lengths is None, keep_values=keep_values,
            **options,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------- in a thread

    def run(self) -> JobReport:
        """Run in this thread; an `async def` function runs on the private loop while this thread waits."""
        if self.is_async:
            return self._loop_for_coroutines().submit(self.run_async()).result()
        began = self._begin()
        with self._context(self.name):
            fn, spread = self._open()
            with running(partial(task_of, weakref.ref(self), None)):
                self._run_elements(fn, spread)
            return self._report(began, self._settle_in_thread)

    def _run_elements(self, fn: Callable[..., Any], spread: bool) -> None:
        if self._timeout is None:
            self._run_on(fn, spread, None)
            return
        self._watch = thread_watch(self._timeout, self._on_overdue)
        with WATCHDOG.watching(self._watch):
            self._run_on(fn, spread, self._watch)

    def _run_on(self, fn: Callable[..., Any], spread: bool, watch: Watch | None) -> None:
        out = self._out
        while True:
            elements = self._iterator
            assert elements is not None
            try:
                if watch is None and not self._asked:
                    out.extend(starmap(fn, elements) if spread else map(fn, elements))
                else:
                    for element in elements:
                        self._run_one(partial(_invoke, fn, element) if spread else partial(fn, element), watch)
            except BaseException as error:  # SystemExit too is only this task's
                self._fail(len(out), error)
                continue
            with self._lock:  # so that a tail just taken is counted
                begun = self.count - self._cut - length_hint(self._iterator)
                is_end = elements is self._iterator
            if len(out) != begun:
                # `extend` takes a StopIteration that a task raises for the end of its input
                self._fail(len(out), RuntimeError(f"{self.name} raised StopIteration"))
            elif is_end:
                return

    def _run_one(self, call: Callable[[], Any], watch: Watch | None) -> None:
        index = len(self._out)
        if index in self._asked:
            self._append(self._cancelled(index))
        elif watch is None:
            self._out.append(call())
        else:
            self._run_watched(index, call, watch)

    def _run_watched(self, index: int, call: Callable[[], Any], watch: Watch) -> None:
        value: Any = None
        error: BaseException | None = None
        try:
            try:
                watch.begin(index)
                value = call()
            except BaseException as raised:
                error = raised
            is_struck = watch.end()
        except TaskTimeout as strike:  # it arrived in these lines: from here on there is none
            error = strike if error is None else error
            is_struck = watch.end()
        if error is not None or is_struck:
            _close(value)
            self._fail(index, error, is_struck=is_struck)
            del error  # whose frames hold this one
            return
        if type(value) is CoroutineType:
            value = self._loop_for_coroutines().submit(self._await_until(index, value, watch.deadline)).result()
        self._append(value)

    def _settle_in_thread(self, start: int) -> None:
        """Await, on the private loop, the coroutines that a plain function (a lambda, say) returned."""
        indexes = [index for index, value in enumerate(self._out) if type(value) is CoroutineType]
        if indexes:
            self._loop_for_coroutines().submit(self._settle_returned(start, indexes)).result()

    # ----------------------------------------------------------------------------------------- on the private loop

    async def run_async(self) -> JobReport:
        """Await the calls one after the other; to be awaited on the private loop. Raises only our own cancellation."""
        began = self._begin()
        with self._context(self.name):
            fn, spread = self._open()
            self._supervisor = Supervisor()
            with self._watched_on_loop():
                while True:
                    elements = self._iterator
                    assert elements is not None
                    for element in elements:
                        index = len(self._out)
                        start = partial(_invoke, fn, element) if spread else partial(fn, element)
                        self._append(await self._supervised(index, start))
                    with self._lock:
                        if elements is self._iterator:
                            assert len(self._out) == self.count - self._cut
                            break
            return self._report(began, None)

    async def _await_until(self, index: int, coroutine: Any, deadline: float) -> Any:
        """Await what a plain function returned, in what is left of its time."""
        self._supervisor = Supervisor()
        outer = self._watch
        try:
            with self._watched_on_loop(deadline):
                return await self._supervised(index, partial(identity, coroutine), deadline)
        finally:
            self._watch = outer
            _close(coroutine)

    async def _settle_returned(self, start: int, indexes: Iterable[int]) -> None:
        self._supervisor = Supervisor()
        for at in indexes:
            coroutine = self._out[at]
            value = await self._supervised(start + at, partial(identity, coroutine))
            _close(coroutine)
            if type(value) is Failed:
                self._failures.append(value.failure)
                value = None
            self._out[at] = value

    async def _supervised(self, index: int, start: Callable[[], Any], deadline: float | None = None) -> Any:
        """The value of `await start()` in an asyncio task of its own, or a `Failed`."""
        supervisor = self._supervisor
        assert supervisor is not None
        # `cancel` notes the index and then asks for the supervisor: seen here, or cancelled there
        if index in self._asked:
            return self._cancelled(index)
        return await supervisor.run(index, self._attempt(index, start, deadline), partial(self._cancelled, index))

    async def _attempt(self, index: int, start: Callable[[], Any], deadline: float | None) -> Any:
        value: Any = None
        error: BaseException | None = None
        watch = self._watch
        with running(partial(task_of, weakref.ref(self), index)):
            # BaseException: asyncio would let SystemExit and KeyboardInterrupt out of the loop
            try:
                if watch is not None:
                    watch.begin(index, deadline)
                value = start()
                if isawaitable(value):
                    value = await value
            except BaseException as raised:
                error = raised
            is_struck = watch is not None and watch.end()
            if error is None and not is_struck:
                return value
            try:
                return Failed(self._failure(index, error, is_struck=is_struck))
            finally:
                del error  # whose frames hold this one

    @contextmanager
    def _watched_on_loop(self, deadline: float | None = None) -> Iterator[None]:
        """With a timeout: `_watch` cancels the coroutine that is over its deadline (the first of them, if known)."""
        if self._timeout is None:
            yield
            return
        supervisor = self._supervisor
        assert supervisor is not None
        self._watch = Watch(self._timeout, lambda index: supervisor.cancel((index,)), on_overdue=self._on_overdue)
        with WATCHDOG.watching(self._watch, deadline):
            yield

    # ------------------------------------------------------------------------------------------------------ common

    def _loop_for_coroutines(self) -> PrivateLoop:
        if self._private_loop is None:
            raise RuntimeError("this job was built without an event loop for coroutines: pass private_loop=.")
        return self._private_loop

    def _report(self, began: float, settle: Callable[[int], None] | None) -> JobReport:
        with self._lock:
            self._over = True
            start = self._harvested
            del self._out[:start]
        out, values = self._out, b""
        if self._keep_values:
            values = self._encoded(out, self._failures, start, partial(settle, start) if settle is not None else None)
        elif settle is not None and CoroutineType in set(map(type, out)):
            settle(start)  # nobody pickles these, so a coroutine would go unnoticed
        return JobReport(values, failures_from(start, self._failures), len(out), time.perf_counter() - began, start)


def _invoke(fn: Callable[..., Any], element: Any) -> Any:
    return fn(*element)


def _close(value: Any) -> None:
    """Nobody awaits this, if it is a coroutine that has not ended."""
    if type(value) is CoroutineType:
        try:
            value.close()
        except BaseException:  # its own clean-up: it had its chance
            pass
