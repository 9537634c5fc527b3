"""daskqueue: a task queue on the Dask cluster you already have."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from daskqueue.__about__ import __version__
from daskqueue.predecessor import refuse_predecessor

if TYPE_CHECKING:
    from daskqueue.client.consumer_pool import ConsumerPool
    from daskqueue.client.executor import QueueExecutor
    from daskqueue.client.futures import TaskFuture
    from daskqueue.client.options import Durability
    from daskqueue.client.queue_pool import QueuePool
    from daskqueue.client.task_batch import TaskBatch
    from daskqueue.consumers import ConsumerBaseClass, DummyConsumer, GeneralConsumer
    from daskqueue.worker.queue_actor import QueueActor
    from daskqueue_core.errors import (
        DaskQueueError,
        NotInstalled,
        PoolClosed,
        PoolExists,
        QueueLost,
        QueueUnavailable,
        WorkerCrashed,
    )


refuse_predecessor()

_HOMES = {
    "ConsumerBaseClass": "daskqueue.consumers",
    "ConsumerPool": "daskqueue.client.consumer_pool",
    "DaskQueueError": "daskqueue_core.errors",
    "DummyConsumer": "daskqueue.consumers",
    "Durability": "daskqueue.client.options",
    "GeneralConsumer": "daskqueue.consumers",
    "NotInstalled": "daskqueue_core.errors",
    "PoolClosed": "daskqueue_core.errors",
    "PoolExists": "daskqueue_core.errors",
    "QueueActor": "daskqueue.worker.queue_actor",
    "QueueExecutor": "daskqueue.client.executor",
    "QueueLost": "daskqueue_core.errors",
    "QueuePool": "daskqueue.client.queue_pool",
    "QueueUnavailable": "daskqueue_core.errors",
    "TaskBatch": "daskqueue.client.task_batch",
    "TaskFuture": "daskqueue.client.futures",
    "WorkerCrashed": "daskqueue_core.errors",
}

__all__ = [
    "ConsumerBaseClass",
    "ConsumerPool",
    "DaskQueueError",
    "DummyConsumer",
    "Durability",
    "GeneralConsumer",
    "NotInstalled",
    "PoolClosed",
    "PoolExists",
    "QueueActor",
    "QueueExecutor",
    "QueueLost",
    "QueuePool",
    "QueueUnavailable",
    "TaskBatch",
    "TaskFuture",
    "WorkerCrashed",
    "__version__",
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
