"""Where a consumer pool's tasks run on one worker: an executor of the worker, one the user makes, or threads of ours.

The worker's own is not ours to end. Ours are replaced when their number changes; what runs on the old ones goes on.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor

from distributed import Worker
from distributed.threadpoolexecutor import ThreadPoolExecutor

__all__ = ["TaskExecutor"]


class TaskExecutor:
    """`wanted`: a name in `worker.executors`, or a pickled function that makes an executor. `resize` comes first."""

    def __init__(self, worker: Worker, wanted: str | bytes, id: str) -> None:
        self._worker = worker
        self._wanted = wanted
        self._id = id
        self._executor: Executor | None = None
        self._owned = False

    @property
    def executor(self) -> Executor:
        """What runs a task now."""
        assert self._executor is not None, "resize comes first"
        return self._executor

    def resize(self, slots: int) -> None:
        """There are `slots` calls at once from now on. Raises if there is no such executor."""
        executors = self._worker.executors
        if isinstance(self._wanted, bytes):
            if self._executor is None:
                self._executor, self._owned = _made_by(pickle.loads(self._wanted)), True
        elif self._wanted != "default" or slots <= self._worker.state.nthreads:
            if self._wanted not in executors:
                raise ValueError(f"executor {self._wanted!r} is not one of this worker's: {sorted(executors)}")
            self.close()
            self._executor = executors[self._wanted]
        else:  # more calls at once than the worker has threads: I/O-bound work, on threads of its own
            self.close()
            self._executor = ThreadPoolExecutor(slots, thread_name_prefix=f"daskqueue-{self._id[:8]}")
            self._owned = True

    def close(self) -> None:
        """What runs goes on, nothing new begins."""
        if self._owned and self._executor is not None:
            self._executor.shutdown(wait=False)
        self._owned = False


def _made_by(factory: Callable[[], object]) -> Executor:
    made = factory()
    if isinstance(made, ProcessPoolExecutor) or not callable(getattr(made, "submit", None)):
        raise TypeError(
            f"executor must make an Executor of threads, such as a ThreadPoolExecutor, and it made {made!r}"
        )
    return made  # type: ignore[return-value]  # anything with its `submit` will do
