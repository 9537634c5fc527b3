"""Every private Dask name we lean on, each with a test of its own.

Not here: anything with a decision in it. When a new `distributed` breaks us, it breaks here, and a test says where.

    name                                     for
    distributed.worker._worker_cvar          get_worker(), get_client(), worker_client() inside a task
    distributed.utils.set_thread_state       worker_client() and secede(), which ask the thread for start_time and key
    Worker.execution_state                   what Dask puts there itself
    Worker.active_threads(_lock)             the Profile page and call stacks
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from distributed import Worker
from distributed.utils import set_thread_state
from distributed.worker import _worker_cvar

__all__ = ["coroutine_context", "task_context"]


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
