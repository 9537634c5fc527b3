"""daskqueue: a task queue on the Dask cluster you already have."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from daskqueue.__about__ import __version__
from daskqueue.predecessor import refuse_predecessor

if TYPE_CHECKING:
    from daskqueue.client.consumer_pool import ConsumerPool
    from daskqueue.client.dead_tasks import DeadTask
    from daskqueue.client.executor import QueueExecutor
    from daskqueue.client.futures import TaskFuture
    from daskqueue.client.health import PoolHealth
    from daskqueue.client.options import Durability
    from daskqueue.client.queue_pool import QueuePool
    from daskqueue.client.task_batch import TaskBatch
    from daskqueue.client.task_door import PoolView
    from daskqueue.client.task_options import TaskOptions
    from daskqueue.consumers import ConsumerBaseClass, DummyConsumer, GeneralConsumer
    from daskqueue.current import Task, current_task
    from daskqueue.worker.queue_actor import QueueActor
    from daskqueue_core.errors import (
        DamagedPayload,
        DaskQueueError,
        DuplicateKey,
        NotInstalled,
        PoolClosed,
        PoolExists,
        QueueLost,
        QueueUnavailable,
        ResultExpired,
        TaskExpired,
        TaskTimeout,
        WorkerCrashed,
    )
    from daskqueue_core.retry import Reject, Retry, RetryPolicy
    from daskqueue_core.states import MessageState
    from daskqueue_core.stats import QueueStats


refuse_predecessor()

_HOMES = {
    "ConsumerBaseClass": "daskqueue.consumers",
    "ConsumerPool": "daskqueue.client.consumer_pool",
    "DamagedPayload": "daskqueue_core.errors",
    "DaskQueueError": "daskqueue_core.errors",
    "DeadTask": "daskqueue.client.dead_tasks",
    "DummyConsumer": "daskqueue.consumers",
    "DuplicateKey": "daskqueue_core.errors",
    "Durability": "daskqueue.client.options",
    "GeneralConsumer": "daskqueue.consumers",
    "MessageState": "daskqueue_core.states",
    "NotInstalled": "daskqueue_core.errors",
    "PoolClosed": "daskqueue_core.errors",
    "PoolExists": "daskqueue_core.errors",
    "PoolHealth": "daskqueue.client.health",
    "PoolView": "daskqueue.client.task_door",
    "QueueActor": "daskqueue.worker.queue_actor",
    "QueueExecutor": "daskqueue.client.executor",
    "QueueLost": "daskqueue_core.errors",
    "QueuePool": "daskqueue.client.queue_pool",
    "QueueStats": "daskqueue_core.stats",
    "QueueUnavailable": "daskqueue_core.errors",
    "Reject": "daskqueue_core.retry",
    "ResultExpired": "daskqueue_core.errors",
    "Retry": "daskqueue_core.retry",
    "RetryPolicy": "daskqueue_core.retry",
    "Task": "daskqueue.current",
    "TaskBatch": "daskqueue.client.task_batch",
    "TaskExpired": "daskqueue_core.errors",
    "TaskFuture": "daskqueue.client.futures",
    "TaskOptions": "daskqueue.client.task_options",
    "TaskTimeout": "daskqueue_core.errors",
    "WorkerCrashed": "daskqueue_core.errors",
    "current_task": "daskqueue.current",
}

__all__ = [
    "ConsumerBaseClass",
    "ConsumerPool",
    "DamagedPayload",
    "DaskQueueError",
    "DeadTask",
    "DummyConsumer",
    "DuplicateKey",
    "Durability",
    "GeneralConsumer",
    "MessageState",
    "NotInstalled",
    "PoolClosed",
    "PoolExists",
    "PoolHealth",
    "PoolView",
    "QueueActor",
    "QueueExecutor",
    "QueueLost",
    "QueuePool",
    "QueueStats",
    "QueueUnavailable",
    "Reject",
    "ResultExpired",
    "Retry",
    "RetryPolicy",
    "Task",
    "TaskBatch",
    "TaskExpired",
    "TaskFuture",
    "TaskOptions",
    "TaskTimeout",
    "WorkerCrashed",
    "__version__",
    "current_task",
]


def __getattr__(name: str) -> Any:
    """Names resolve when they are used (PEP 562): importing daskqueue loads no Dask."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'daskqueue' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
