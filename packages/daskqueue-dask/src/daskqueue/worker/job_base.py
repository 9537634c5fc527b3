"""What a job is, whoever runs it, and what may be done to it meanwhile: shorten it, cancel in it, ask what has ended.

Not here: running the elements (`runners`); whether a failure is tried again (`verdicts`).

Invariants:
- Executed elements are a prefix: the first `count` less what `take_rest` took.
- Positions are counted from the job's first element everywhere inside; a report counts from its `start`.
- An element is reported once: what `harvest` has told, the job's own report leaves out, an overdue element too.
- Whoever runs elements goes on with `_iterator` until it is the one that has come to its end: `cancel` changes it.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from types import CoroutineType
from typing import Any, NamedTuple

from daskqueue.current import Task, task_key
from daskqueue.wire.calls import encode_values
from daskqueue.wire.control import decode_control
from daskqueue.wire.errors import TaskFailure
from daskqueue.worker.async_loop import PrivateLoop
from daskqueue.worker.deadlines import Watch
from daskqueue.worker.job_terms import Context, JobReport, failures_from
from daskqueue.worker.loading import Load, Loaded
from daskqueue.worker.supervisor import Supervisor
from daskqueue.worker.verdicts import Verdicts
from daskqueue_core.batch import Run
from daskqueue_core.retry import ON_REQUEST, RetryPolicy

__all__ = ["Failed", "JobBase", "identity", "task_of"]


class Failed(NamedTuple):
    """What comes of an element instead of a value."""

    failure: TaskFailure


class JobBase:
    """The state of a job. A subclass runs it; `take_rest`, `cancel` and `harvest` may come from other threads.

    Attributes
    ----------
    count: elements given to it
    started_at: `time.monotonic()` when it began to run, None before
    """

    __slots__ = (
        "__weakref__", "_asked", "_attempts", "_client", "_context", "_control", "_cut", "_elements", "_failures",
        "_first", "_harvested", "_in_block", "_iterator", "_keep_values", "_keys", "_load", "_lock",
        "_on_overdue", "_out", "_over", "_private_loop", "_retry", "_supervisor", "_timeout", "_verdicts", "_watch",
        "count", "is_async", "name", "started_at",
    )  # fmt: skip

    def __init__(
        self,
        load: Load,
        count: int,
        *,
        name: str,
        is_async: bool,
        in_block: bool = False,
        context: Context = nullcontext,
        private_loop: PrivateLoop | None = None,
        keep_values: bool = True,
        control: bytes = b"",
        retry: RetryPolicy | None = None,
        attempts: bytes = b"",
        client: int = 0,
        first: int = 0,
        keys: tuple[str, ...] = (),
        on_overdue: Callable[[], None] | None = None,
    ) -> None:
        self.count = count
        self.name = name
        self.is_async = is_async
        self.started_at: float | None = None
        self._load = load
        self._in_block = in_block
        self._context = context
        self._private_loop = private_loop
        self._keep_values = keep_values
        self._control = control
        self._retry = retry
        self._attempts = attempts
        self._client, self._first, self._keys = client, first, keys
        self._on_overdue = on_overdue
        self._lock = threading.Lock()
        self._elements: Sequence[Any] | None = None  # once they are loaded
        self._iterator: Iterator[Any] | None = None
        self._cut = 0
        self._harvested = 0
        self._over = False
        self._timeout: float | None = None
        self._out: list[Any] = []
        self._failures: list[TaskFailure] = []
        self._asked: set[int] = set()  # to be cancelled
        self._verdicts: Verdicts | None = None
        self._watch: Watch | None = None
        self._supervisor: Supervisor | None = None  # of coroutines, once there are some

    # ------------------------------------------------------------------------------------------------ from outside

    @property
    def finished(self) -> int:
        """How many elements have ended, which is the index of the one that runs."""
        return len(self._out)

    def take_rest(self) -> int:
        """Take away what has not begun and say how many that were: all of it if the job has not begun.

        While it reads its elements the first counts as begun: reading may take longer than a lease should, and would
        again wherever it went.
        """
        with self._lock:
            if self._iterator is not None:
                taken = len(list(self._iterator))
            else:
                taken = max(0, self.count - self._cut - (self.started_at is not None))
            self._cut += taken
            return taken

    def cancel(self, runs: Iterable[Run]) -> None:
        """Cancel these elements: what has not begun is not run, a coroutine is cancelled, a thread may ask.

        They are reported in any case, as cancelled if that is what came of it.
        """
        with self._lock:
            fresh = {position for start, stop in runs for position in range(start, stop)} - self._asked
            if not fresh:
                return
            self._asked |= fresh
            if self._iterator is not None:  # what has not begun goes on one by one
                self._iterator = iter(list(self._iterator))
        if self._supervisor is not None:
            self._supervisor.cancel(fresh)

    def harvest(self) -> JobReport | None:
        """What has ended so far, while the job goes on; from another thread. Its own report leaves that out then.

        An element that is over its timeout and cannot be interrupted counts as ended: what comes of it is nobody's.
        """
        with self._lock:
            start, stop = self._harvested, len(self._out)
            is_overdue = stop >= start and self._watch is not None and self._watch.overdue == stop
            values = self._out[start:stop]
            if self._over or not (values or is_overdue) or CoroutineType in set(map(type, values)):
                return None
            self._harvested = stop + is_overdue
            failures = [failure for failure in self._failures if start <= failure.position < stop]
        if is_overdue:
            values.append(None)
            failures.append(self._judge().timed_out(stop, None))
        data = self._encoded(values, failures, start, None) if self._keep_values else b""
        return JobReport(data, failures_from(start, failures), len(values), 0.0, start)

    # ---------------------------------------------------------------------------------------------- for who runs it

    def _begin(self) -> float:
        with self._lock:
            assert self.started_at is None, "a job runs once"
            self.started_at = time.monotonic()
        return time.perf_counter()

    def _open(self) -> tuple[Callable[..., Any], bool]:
        fn, elements, spread = self._loaded()
        with self._lock:
            self._iterator = iter(elements[: self.count - self._cut] if self._cut else elements)
        return fn, spread

    def _loaded(self) -> Loaded:
        if self._cut == self.count:  # withdrawn before it began: do not import a module for nothing
            return Loaded(identity, [], False)
        try:
            control = decode_control(self._control) if self._control else None
            loaded = self._load()
        except BaseException as error:  # the function, or the options, of all of them: every element fails with it
            return Loaded(partial(_raise, error), [()] * self.count, True)
        self._elements = loaded.elements
        if control is not None:
            self._timeout = control.timeout
            self._retry = self._retry if control.retry is None else control.retry
        return loaded

    def task_at(self, index: int | None) -> Task | None:
        """The element `index` as it sees itself; None: the one that runs in the thread, if one does."""
        if index is None:
            index = len(self._out)
            if self._over or index >= self.count - self._cut:
                return None
        key = self._keys[index] if self._keys else task_key(self._client, self._first + index) if self._client else ""
        attempt = 1 + (self._attempts[index] if self._attempts else 0)
        deadline = None if self._watch is None else time.time() + self._watch.deadline - time.monotonic()
        return Task(key, attempt, deadline, asked=self._asked, position=index)

    def _append(self, value: Any) -> None:
        if type(value) is Failed:
            self._failures.append(value.failure)
            value = None
        self._out.append(value)

    def _fail(self, index: int, error: BaseException | None, *, is_struck: bool = False) -> None:
        self._append(Failed(self._failure(index, error, is_struck=is_struck)))

    def _cancelled(self, index: int) -> Failed:
        return Failed(self._failure(index, asyncio.CancelledError()))

    def _failure(self, index: int, error: BaseException | None, *, is_struck: bool = False) -> TaskFailure:
        if is_struck:
            return self._judge().timed_out(index, error)
        assert error is not None
        return self._judge().failed(index, error)

    def _judge(self) -> Verdicts:
        if self._verdicts is None:
            self._verdicts = Verdicts(
                self.name,
                ON_REQUEST if self._retry is None else self._retry,
                elements=self._elements,
                attempts=self._attempts,
                timeout=self._timeout,
                asked=self._asked,
                load_again=self._load if self._in_block else None,
            )
        return self._verdicts

    def _encoded(
        self, values: list[Any], failures: list[TaskFailure], start: int, mend: Callable[[], None] | None
    ) -> bytes:
        """`values` from element `start` on as one pickle; those that cannot travel join the `failures`."""
        data, unpicklable = encode_values(values, mend=mend)
        if unpicklable:
            known = {failure.position for failure in failures}
            moved = [failure._replace(position=start + failure.position) for failure in unpicklable]
            failures += [self._judge().unpicklable(failure) for failure in moved if failure.position not in known]
        return data


def task_of(job: weakref.ref[JobBase], index: int | None) -> Task | None:
    """For `current_task`: the element `index`, or the one that runs. Weak, since contexts are copied and kept."""
    it = job()
    return None if it is None else it.task_at(index)


def identity(value: Any) -> Any:
    """`value`."""
    return value


def _raise(error: BaseException) -> Any:
    raise error.with_traceback(None)
