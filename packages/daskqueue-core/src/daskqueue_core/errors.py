"""The error tree: one class per cause, with fields instead of text to be parsed.

    DaskQueueError
    ├── IllegalMove          an event asked for a move that TRANSITIONS does not have
    ├── PoolExists           a pool of that name lives with other options
    ├── PoolClosed           the pool was shut down
    ├── QueueUnavailable     a queue has no host at present
    ├── QueueMoved           (in `handover`) a queue was handed over to another host: ask the directory
    ├── QueueLost            a queue is gone with what it held, and it cannot be put again
    ├── WorkerCrashed        the worker died while it ran the task, which is not run again
    ├── TaskTimeout          the task ran longer than its timeout (also TimeoutError)
    ├── TaskExpired          the task was not started before its `expires`
    ├── ResultExpired        the task has ended, and its outcome is not kept any more
    ├── DamagedPayload       what was put is not on the disk any more as it was written
    ├── DuplicateKey         a task with that key is there already (also ValueError)
    └── NotInstalled         a process of the cluster lacks daskqueue, or has another protocol

Mistakes of a caller that Python has a word for (a negative count, a wrong type) are ValueError and TypeError.
"""

from __future__ import annotations

from daskqueue_core.states import MessageState

__all__ = [
    "DamagedPayload",
    "DaskQueueError",
    "DuplicateKey",
    "IllegalMove",
    "NotInstalled",
    "PoolClosed",
    "PoolExists",
    "QueueLost",
    "QueueUnavailable",
    "ResultExpired",
    "TaskExpired",
    "TaskTimeout",
    "WorkerCrashed",
]


class DaskQueueError(Exception):
    """Everything this project raises of its own."""


class IllegalMove(DaskQueueError):
    """An event does not fit the states of its messages. The ledger is as it was before.

    `decide_*` never returns such an event, so somebody applied one twice, late, or of another queue.
    """

    def __init__(self, event: object, state: MessageState | None, seq: int | None, why: str = "") -> None:
        self.event = event
        self.state = state
        self.seq = seq
        kind = type(event).__name__
        what = f"{kind} does not apply to message {seq}, which is {'unknown' if state is None else state.name}"
        super().__init__(f"{what if seq is not None else kind}{': ' if why else ''}{why}; nothing was changed")


class PoolExists(DaskQueueError):
    """A pool of that name exists with other options: `{option: (existing, asked)}`."""

    def __init__(self, name: str, differences: dict[str, tuple[object, object]]) -> None:
        self.name = name
        self.differences = differences
        listed = ", ".join(f"{option} is {old!r}, not {new!r}" for option, (old, new) in differences.items())
        super().__init__(
            f"pool {name!r} exists with other options: {listed}. Attach with equal options, "
            f"QueuePool.attach(client, {name!r}), or choose another name"
        )

    def __reduce__(self) -> tuple[type[PoolExists], tuple[object, ...]]:
        return PoolExists, (self.name, self.differences)


class PoolClosed(DaskQueueError, RuntimeError):
    """The pool was shut down, or the Dask client it works with was closed. Make a new one."""


class QueueUnavailable(DaskQueueError):
    """A queue has no host at present; its tasks wait for one."""

    def __init__(self, pool: str, index: int, why: str) -> None:
        self.pool = pool
        self.index = index
        self.why = why
        super().__init__(f"queue {index} of pool {pool!r} is unavailable: {why}")

    def __reduce__(self) -> tuple[type[QueueUnavailable], tuple[object, ...]]:
        return QueueUnavailable, (self.pool, self.index, self.why)


class QueueLost(DaskQueueError):
    """The queue is gone with what it held, and nobody can put it again."""


class WorkerCrashed(DaskQueueError):
    """The worker that ran the task died, and the task is not run again."""


class TaskTimeout(DaskQueueError, TimeoutError):
    """The task ran longer than its timeout."""

    def __init__(self, message: str = "this task ran longer than its timeout") -> None:
        super().__init__(message)  # the default: what is raised inside the task comes without arguments


class TaskExpired(DaskQueueError):
    """The task was not started before the time its `expires` says, and does not run any more."""


class ResultExpired(DaskQueueError):
    """The task has ended, and how is not kept any more: its result was collected, and `result_ttl` is over."""


class DamagedPayload(DaskQueueError):
    """The bytes of the task are not on the disk as they were written: it cannot be run. Submit it again."""


class DuplicateKey(DaskQueueError, ValueError):
    """A task with that key is unfinished or has succeeded, and `on_duplicate="raise"` was asked for."""


class NotInstalled(DaskQueueError):
    """A process of the cluster lacks daskqueue, or has another protocol."""
