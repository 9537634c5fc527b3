"""Calls that were submitted one by one become batches: those of one function, with equal terms, that came in a row.

What differs by call travels in columns: its body, its key, its time. A batch with keys goes to the queue that the keys
name, so it ends where the next key names another one.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from daskqueue.client.futures import FutureSink, TaskFuture
from daskqueue.client.naming import queue_of
from daskqueue.client.task_options import Terms
from daskqueue.wire.functions import EncodedFunction
from daskqueue_core.batch import Batch, Keep, Kind, lengths_column, times_column

__all__ = ["BATCH_BYTES", "BATCH_CALLS", "Call", "Gathered", "gather"]

BATCH_CALLS: Final = 1000
BATCH_BYTES: Final = 1 << 20


class Call(NamedTuple):
    """One call on its way."""

    function: EncodedFunction
    body: bytes
    future: TaskFuture
    terms: Terms
    ready_at: int = 0


class Gathered(NamedTuple):
    """A batch, who hears of it, and the queue it must go to (None: any)."""

    batch: Batch
    sink: FutureSink
    queue: int | None


def gather(calls: deque[Call], client: int, most: int, n_queues: int) -> Gathered:
    """The first calls, as far as they can travel together and have consecutive numbers."""
    head = calls[0]
    shared, terms, number = head.function.shared, head.terms, head.future.number
    queue = queue_of(head.future.key, n_queues) if terms.keyed else None
    bodies: list[bytes] = []
    futures: list[TaskFuture] = []
    times: list[int] = []
    nbytes = 0
    while calls and len(bodies) < most and nbytes < BATCH_BYTES:
        function, body, future, of_this, ready_at = calls[0]
        if function.shared is not shared or future.number != number + len(bodies):
            break
        if of_this is not terms and of_this != terms:
            break
        if queue is not None and queue_of(future.key, n_queues) != queue:
            break
        calls.popleft()
        bodies.append(body)
        futures.append(future)
        times.append(ready_at)
        nbytes += len(body)
    batch = Batch(
        count=len(bodies),
        body=b"".join(bodies),
        lengths=lengths_column(bodies),
        shared=shared,
        kind=Kind.CALL,
        function=head.function.hash,
        client=client,
        first=number,
        keep=terms.keep,
        control=terms.control,
        priority=terms.priority,
        ready_ats=times_column(times) if terms.timed else b"",
        expires_at=terms.expires_at,
        keys=tuple([future.key for future in futures]) if terms.keyed else (),
        on_duplicate=terms.on_duplicate,
        tags=terms.tags,
        max_crashes=terms.max_crashes,
    )
    return Gathered(batch, FutureSink(futures, keeps=terms.keep is Keep.KEEP, discard=terms.discard), queue)
