"""Deadlines of running elements: one watchdog thread in a process, and a `Watch` for each job that has a timeout.

A job says `begin` and `end` around each element. An element that is not over at its deadline is struck, once:
`TaskTimeout` is raised in its thread (`PyThreadState_SetAsyncExc`), or its coroutine is cancelled. A thread blocked in
C notices that only when it returns; `GRACE_S` after the deadline the element is overdue, and whoever holds the job is
told, so that the failure can be reported while the thread still runs.

The race between the end of an element and its deadline is decided by one `list.pop`: each element has a list of its
own, its mark, with one entry, and whoever takes the entry wins. The job wins: this element is never struck. The
watchdog wins: the strike is for this element only; `end` waits until it is sent and takes back what has not arrived.
The job's side takes no lock, since a strike that arrives between taking and `try` would leave it locked for ever. The
function that catches strikes has no loop: on Python 3.13 what arrives at a loop's end misses the `except` and `finally`
of that same function (python/cpython#130279), in a user's task too.

Not here: what is reported of an element that was struck (`runners`).

Invariants:
- A strike arrives between `begin` and the return of `end`, in the element that was over its deadline, at most once.
- It may arrive inside `end` itself: then `end` raises it, and calling it again gives the answer.
- Between elements, and after `close`, a watch refers to nothing that belongs to a task.
- The watchdog's thread starts with the first watch, sleeps while there is none, and nothing that it calls ends it.
"""

from __future__ import annotations

import ctypes
import heapq
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from daskqueue_core.errors import TaskTimeout

__all__ = ["GRACE_S", "WATCHDOG", "Watch", "Watchdog", "thread_watch"]

GRACE_S: Final = 0.1  # in which a strike comes to any code that runs Python
AGAIN_S: Final = 1.0
_CLOSED_MAX: Final = 64
_SHORTEST_S: Final = 0.001  # between two looks at one watch

logger = logging.getLogger(__name__)

_Mark = list[tuple[float, int]]
_IDLE: Final[_Mark] = []


def _nothing() -> None:
    """Stands for a callback that is not wanted."""


class Watch:
    """The deadline of the element that a job runs now. `begin`, `end` and `close` are the job's, in its own thread.

    `strike(index)` interrupts the element `index`, and `absorb()` takes back, in the job's thread, a strike that has
    not arrived. `on_overdue()` is called in the watchdog's thread, when an element is overdue, and every
    `AGAIN_S` as long as it is.
    """

    __slots__ = ("_absorb", "_mark", "_on_overdue", "_sent", "_strike", "_struck", "deadline", "overdue", "timeout")

    def __init__(
        self,
        timeout: float,
        strike: Callable[[int], None],
        *,
        absorb: Callable[[], None] = _nothing,
        on_overdue: Callable[[], None] | None = None,
    ) -> None:
        self.timeout = timeout
        self.deadline = 0.0
        """Of the element that runs, in `time.monotonic()`."""
        self.overdue = -1
        """The last element that went on although it was struck; -1: none."""
        self._mark = _IDLE
        self._sent: _Mark | None = None  # the mark whose element was struck last
        self._struck = (0.0, -1)  # when to tell that it goes on, and which it is
        self._strike: Callable[[int], None] | None = strike
        self._absorb = absorb
        self._on_overdue = on_overdue or _nothing

    # -- the job's side

    def begin(self, index: int, deadline: float | None = None) -> None:
        """The element `index` starts; with the `deadline` it has already if it started elsewhere."""
        self.deadline = deadline = time.monotonic() + self.timeout if deadline is None else deadline
        self._mark = [(deadline, index)]

    def end(self) -> bool:
        """It has ended; says whether it was struck. May raise the strike: then call it again."""
        mark = self._mark
        try:
            mark.pop()
        except IndexError:
            if mark is _IDLE:
                return False
        else:
            self._mark = _IDLE
            return False
        while self._sent is not mark:  # the watchdog is about to send it: give it the interpreter
            time.sleep(0.0001)
        self._absorb()
        self._mark = _IDLE
        return True

    def close(self) -> None:
        """No more elements: refer to nobody any more."""
        self._strike = None
        self._absorb = self._on_overdue = _nothing

    @property
    def is_closed(self) -> bool:
        """Whether its job is over."""
        return self._strike is None

    # -- the watchdog's side

    def look(self, now: float) -> float | None:
        """Strike, or tell, if it is time to; when to look again, None: never. Does not raise."""
        strike, mark, tell = self._strike, self._mark, self._on_overdue
        if strike is None:
            return None
        next_element = now + max(self.timeout, _SHORTEST_S)  # one that begins right now is over then
        if mark is self._sent:
            tell_at, index = self._struck
            if now < tell_at:
                return min(tell_at, next_element)
            self.overdue = index
            _call(tell)
            wait = AGAIN_S
        else:
            wait = GRACE_S
            try:
                deadline, index = mark[0]
                if deadline > now:
                    return deadline
                mark.pop()
            except IndexError:  # it has ended
                return next_element
            _call(partial(strike, index))
            self._sent = mark
        self._struck = now + wait, index
        return min(now + wait, next_element)


def _call(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception:
        logger.exception("a task is over its timeout, and dealing with it failed")


class Watchdog:
    """Looks at watches when their deadlines come. Thread-safe."""

    def __init__(self, *, name: str = "daskqueue-deadlines") -> None:
        self.name = name
        self._changed = threading.Condition(threading.Lock())
        self._heap: list[tuple[float, int, Watch]] = []
        self._number = 0
        self._open = 0
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        """How many watches it keeps, closed ones that it has not met yet included."""
        return len(self._heap)

    def open(self, watch: Watch, at: float | None = None) -> None:
        """Look at `watch` until it is closed, first when a deadline may be over: `at`, or one timeout from now."""
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
                self._thread.start()
            self._open += 1
            self._push(time.monotonic() + watch.timeout if at is None else at, watch)
            if self._heap[0][2] is watch:
                self._changed.notify()

    def close(self, watch: Watch) -> None:
        """The job of `watch` is over."""
        watch.close()
        with self._changed:
            self._open -= 1
            if len(self._heap) > 2 * self._open + _CLOSED_MAX:  # many short jobs with a long timeout
                self._heap = [entry for entry in self._heap if not entry[2].is_closed]
                heapq.heapify(self._heap)

    @contextmanager
    def watching(self, watch: Watch, at: float | None = None) -> Iterator[None]:
        """`open`, while its job runs."""
        self.open(watch, at)
        try:
            yield
        finally:
            self.close(watch)

    def _push(self, at: float, watch: Watch) -> None:
        self._number += 1
        heapq.heappush(self._heap, (at, self._number, watch))

    def _run(self) -> None:
        while True:
            watch = self._next()
            at = watch.look(time.monotonic())
            if at is not None:
                with self._changed:
                    self._push(at, watch)
            del watch  # while this sleeps, it keeps nobody's job

    def _next(self) -> Watch:
        """Wait until a watch is to be looked at."""
        with self._changed:
            while True:
                left = self._heap[0][0] - time.monotonic() if self._heap else threading.TIMEOUT_MAX
                if left <= 0:
                    return heapq.heappop(self._heap)[2]
                self._changed.wait(min(left, threading.TIMEOUT_MAX))


WATCHDOG: Final = Watchdog()
"""The one of this process."""

# Prototypes of our own: whoever sets `argtypes` on ctypes.pythonapi's function sets them for everybody.
_NAME: Final = ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
_raise_in = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.py_object)(_NAME)


class _Instead(BaseException):
    """What arrives in place of a strike that came too late."""


def _absorb(ident: int) -> None:
    """In this thread, `ident`: let something else arrive in place of a strike that has not.

    It could be taken back (NULL), but up to Python 3.12 the interpreter then looks out for it for ever: each call is
    slower, and on 3.11 the first one under a tracer never begins.
    """
    try:
        _raise_in(ident, _Instead)
        _nothing()
    except _Instead:
        pass


def thread_watch(timeout: float, on_overdue: Callable[[], None] | None = None) -> Watch:
    """A watch over what this thread runs: the strike is a `TaskTimeout`, raised where it is."""
    ident = threading.get_ident()

    def strike(index: int) -> None:
        _raise_in(ident, TaskTimeout)

    return Watch(timeout, strike, absorb=partial(_absorb, ident), on_overdue=on_overdue)
