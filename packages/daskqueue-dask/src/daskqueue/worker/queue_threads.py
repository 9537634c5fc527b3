"""The threads in which a hosted queue's operations run, and how what they bring back comes to the event loop.

A few threads for each queue: its operations wait for the disk, and those that wait together share one sync. They are
daemons, so a disk that never answers does not keep the worker process alive.

An operation that was begun is ended, whatever becomes of its caller; what it returns goes to its heir then. Many that
end together wake the event loop once.

Not here: what is done (`durable_actor`).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

__all__ = ["Job", "Lane", "QueueThreads", "in_thread"]

T = TypeVar("T")


class Job(Generic[T]):
    """One operation: what it is, and what came of it."""

    __slots__ = ("_do", "_heir", "ended", "error", "value", "waiter")

    value: T  # if it has ended, and there is no error

    def __init__(self, do: Callable[[], T]) -> None:
        self._do = do
        self._heir: Callable[[T], object] | None = None
        self.ended = False
        self.error: BaseException | None = None
        self.waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def run(self) -> None:
        """In a thread."""
        try:
            self.value = self._do()
        except BaseException as error:  # a thread must not end by what its caller is to hear
            self.error = error

    def end(self) -> None:
        """On the event loop."""
        self.ended = True
        if self._heir is not None and self.error is None:
            self._heir(self.value)
        if not self.waiter.done():
            self.waiter.set_result(None)

    def leave_to(self, heir: Callable[[T], object]) -> None:
        """The caller is gone: what the operation returned, or will return, is for `heir`."""
        self._heir = heir
        if self.ended and self.error is None:
            heir(self.value)

    def result(self) -> T:
        """What it returned, or raised."""
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # its traceback has this frame
        return self.value


class Lane:
    """Operations that begin one after the other, in the order of their calls, and end beside each other.

    The threads that wake together do not run in order: so a thread does not bring an operation, it takes the next one.
    """

    def __init__(self) -> None:
        self._next: SimpleQueue[Job[Any]] = SimpleQueue()
        self._entry = threading.Lock()
        self._inside = 0

    def add(self, job: Job[Any]) -> None:
        """On the event loop."""
        self._next.put(job)

    def run(self) -> Job[Any]:
        """In a thread: the next one, when the one before it lets it."""
        self._entry.acquire()
        self._inside = threading.get_ident()
        job = self._next.get()
        job.run()
        return job

    def through(self, do: Callable[[], T]) -> T:
        """What an operation of this lane does: the next may begin when it is done, or `leave`s before."""
        try:
            return do()
        finally:
            self.leave()

    def leave(self) -> None:
        """The next may begin, if this thread holds it up."""
        if self._inside == threading.get_ident():
            self._inside = 0
            self._entry.release()


class QueueThreads:
    """At most `size` threads, begun when they are needed. To be used from one event loop."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[Job[Any] | Lane | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._ended: list[Job[Any]] = []
        self._lock = threading.Lock()  # of what has ended and was not told
        self.running = 0
        """Jobs that were started and of which the event loop has not heard the end."""
        self._quiet: list[asyncio.Future[None]] = []

    def start(self, job: Job[Any], lane: Lane | None = None) -> None:
        """Run it when a thread is free, and when it is its turn in `lane`."""
        self.running += 1
        if self.running > len(self._threads) and len(self._threads) < self._size:
            thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        if lane is not None:
            lane.add(job)
        self._jobs.put(job if lane is None else lane)

    async def wait_idle(self) -> None:
        """Return when no job is running."""
        while self.running:
            quiet: asyncio.Future[None] = self._loop.create_future()
            self._quiet.append(quiet)
            await quiet

    def close(self) -> None:
        """What was started is ended; then the threads end."""
        for _ in self._threads:
            self._jobs.put(None)

    def _work(self) -> None:
        while (todo := self._jobs.get()) is not None:
            if isinstance(todo, Lane):
                job = todo.run()
            else:
                job = todo
                job.run()
            with self._lock:
                self._ended.append(job)
                is_first = len(self._ended) == 1
            del job, todo  # or it would be kept until the next
            if is_first:
                with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody is left to tell
                    self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        with self._lock:
            ended, self._ended = self._ended, []
        self.running -= len(ended)
        for job in ended:
            try:
                job.end()
            except Exception as error:
                self._loop.call_exception_handler({"message": f"{self._name}: after an operation", "exception": error})
        if not self.running:
            quiet, self._quiet = self._quiet, []
            for each in quiet:
                if not each.done():
                    each.set_result(None)


async def in_thread(name: str, do: Callable[[], T], heir: Callable[[T], object] | None = None) -> T:
    """Run `do` in a daemon thread of its own. If the caller is gone by then, `heir` is called there with the result."""
    gone = threading.Event()
    settled = threading.Lock()  # the caller takes the result, or its heir: never both, never none

    def act() -> T:
        value = do()
        with settled:
            if not gone.is_set():
                taken.append(value)
                return value
        if heir is not None:
            heir(value)
        return value

    taken: list[T] = []
    threads = QueueThreads(name, 1)
    job = Job(act)
    threads.start(job)
    threads.close()
    try:
        await job.waiter
    except asyncio.CancelledError:
        with settled:
            gone.set()
            late = bool(taken)
        if late and heir is not None:
            _spare(name, heir, taken[0])
        raise
    return job.result()


def _spare(name: str, heir: Callable[[T], object], value: T) -> None:
    threading.Thread(target=heir, args=(value,), name=name, daemon=True).start()
