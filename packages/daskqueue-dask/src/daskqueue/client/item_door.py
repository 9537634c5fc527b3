"""Puts that do not wait, or not for long: each under a producer id of its own, so that a refused one leaves nothing.

What may wait for ever goes through the `Submitter`, which sends many puts at once and keeps their order.
"""

from __future__ import annotations

import asyncio
import secrets
from queue import Full as QueueFull

from daskqueue.client.submitter import ROOM_WAIT_S
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
    clock = asyncio.get_running_loop().time
    producer, until = secrets.randbits(64), clock() + wait
    while True:
        left = max(0.0, until - clock())
        part = min(left, ROOM_WAIT_S)  # a host that hangs is noticed only after that
        refusal: Exception | None = None
        try:
            answer = await link.call(
                route, index, "admit", patience=patience, batches=(batch,), producer=producer, number=0, wait=part
            )
        except RemoteFailure as failure:
            if failure.kind != DiskFullError.__name__:
                raise
            refusal = storage_error(failure.kind, str(failure), "")
        else:
            if isinstance(answer, Accepted):
                return answer
            if isinstance(answer, Full):
                refusal = QueueFull(f"queue {index} of pool {route.pool!r} is full: nothing was put")
        if refusal is not None and left <= part:
            raise refusal
