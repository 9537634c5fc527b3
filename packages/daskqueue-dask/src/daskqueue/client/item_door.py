"""Puts that do not wait, or not for long: each under a producer id of its own, so that a refused one leaves nothing.

What may wait for ever goes through the `Submitter`, which sends many puts at once and keeps their order.
"""

from __future__ import annotations

import secrets
from queue import Full as QueueFull

from daskqueue.wire.link import Link, RemoteFailure, Route
from daskqueue.wire.storage_errors import storage_error
from daskqueue_core.batch import Batch
from daskqueue_core.queue import Accepted, Full
from daskqueue_storage.errors import DiskFullError

__all__ = ["put_now"]


async def put_now(
    link: Link, route: Route, index: int, batch: Batch, *, wait: float, patience: float | None
) -> Accepted:
    """Put `batch` into queue `index`. Fewer are accepted if keys are in use.

    `queue.Full` or `DiskFullError` after `wait` seconds without room, `QueueUnavailable` after `patience` seconds
    without a host.
    """
    producer = secrets.randbits(64)
    answer = None
    while not isinstance(answer, (Accepted, Full)):
        try:
            answer = await link.call(
                route, index, "admit", patience=patience, batches=(batch,), producer=producer, number=0, wait=wait
            )
        except RemoteFailure as failure:
            if failure.kind != DiskFullError.__name__:
                raise
            raise storage_error(failure.kind, str(failure), "") from None
    if isinstance(answer, Full):
        raise QueueFull(f"queue {index} of pool {route.pool!r} is full: nothing was put")
    return answer
