"""Every private Dask name we lean on, each with a test of its own.

Not here: anything with a decision in it. When a new `distributed` breaks us, it breaks here, and a test says where.

    name                                     for
    distributed.worker._worker_cvar          get_worker(), get_client(), worker_client() inside a task
    distributed.utils.set_thread_state       worker_client() and secede(), which ask the thread for start_time and key
    Worker.execution_state                   what Dask puts there itself
    Worker.active_threads(_lock)             the Profile page and call stacks
    Worker.monitor.proc                      when this process began, and its parents
    Worker.metrics                           what heartbeats bring to the scheduler, in `WorkerState.metrics`
    Worker.periodic_callbacks["heartbeat"]   what a worker that leaves says no more
    Scheduler.handlers["adaptive_target"]    how many workers `cluster.adapt` wants
    Server._event_finished                   what `Server.finished` waits for
    protocol.serialize.Serialized            frames that arrive as one: how Dask says that it has split a buffer
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from distributed import Scheduler, Worker
from distributed.protocol.serialize import Serialized, serialize_and_split
from distributed.scheduler import WorkerState
from distributed.utils import set_thread_state
from distributed.worker import _worker_cvar

__all__ = [
    "Process",
    "add_metric",
    "coroutine_context",
    "end_heartbeats",
    "end_of",
    "frames_of_one",
    "metric_of",
    "process_of",
    "raise_adaptive_target",
    "task_context",
]


@contextmanager
def task_context(worker: Worker, key: str, *, start_time: float | None = None) -> Iterator[None]:
    """Make this thread look to Dask as if it ran the task `key`. `start_time` is wall clock, as Dask's own."""
    ident = threading.get_ident()
    with worker.active_threads_lock:
        worker.active_threads[ident] = key
    token = _worker_cvar.set(worker)
    state = {
        "start_time": time.time() if start_time is None else start_time,
        "execution_state": worker.execution_state,
        "key": key,
    }
    try:
        with set_thread_state(**state):
            yield
    finally:
        _worker_cvar.reset(token)
        with worker.active_threads_lock:
            worker.active_threads.pop(ident, None)


@contextmanager
def coroutine_context(worker: Worker) -> Iterator[None]:
    """Let a coroutine, and the asyncio tasks that it starts, find their worker.

    Nothing of the thread is set: other tasks interleave on it, and it is not one that could secede.
    """
    token = _worker_cvar.set(worker)
    try:
        yield
    finally:
        _worker_cvar.reset(token)


class Process(Protocol):
    """What we use of psutil's."""

    def create_time(self) -> float:
        """When it began, in seconds of the epoch."""

    def parents(self) -> list[Process]:
        """Its parent, the parent of that, and so on."""

    def environ(self) -> dict[str, str]:
        """Its environment as it began."""


def process_of(worker: Worker) -> Process:
    """The process a worker is in."""
    process: Process = worker.monitor.proc
    return process


def add_metric(worker: Worker, name: str, measure: Callable[[Worker], Any]) -> None:
    """Let each heartbeat of the worker bring what `measure` says, which must be a plain value and must not wait."""
    worker.metrics[name] = measure


def end_heartbeats(worker: Worker) -> None:
    """No more from this worker: one that was retired would be told that it is unknown, and both log a warning."""
    worker.periodic_callbacks["heartbeat"].stop()


def end_of(worker: Worker) -> None:
    """Let those go that wait for the end of a worker whose closing was cancelled: nobody else would."""
    worker._event_finished.set()


def metric_of(worker: WorkerState, name: str) -> Any:
    """What the last heartbeat of a worker brought; None: nothing yet."""
    return worker.metrics.get(name)


def raise_adaptive_target(scheduler: Scheduler, wanted: Callable[[Any], int]) -> None:
    """Let `cluster.adapt` want at least as many workers as `wanted` says, of the `target_duration` that it has."""
    target = scheduler.handlers["adaptive_target"]

    def adaptive_target(target_duration: Any = None) -> int:
        of_dask: int = target(target_duration=target_duration)
        return max(of_dask, wanted(target_duration))

    scheduler.handlers["adaptive_target"] = adaptive_target


def frames_of_one(pieces: Sequence[bytes]) -> Serialized:
    """For a message: what arrives as a memoryview of all `pieces`, which are not joined before; no copy is made there.

    As a buffer that Dask has split into frames, which it reads into one.
    """
    header, _ = serialize_and_split(memoryview(b""))
    count = len(pieces)
    header["sub-header"] = {"format": "B", "shape": (sum(map(len, pieces)),)}
    header |= {"split-num-sub-frames": (count,), "split-offsets": (0,), "compression": (None,) * count}
    return Serialized(header, list(pieces))
