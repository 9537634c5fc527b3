"""Messages that wait for their time: what a queue holds for a million of them, beside their own bytes."""

from __future__ import annotations

import gc
import random
import tracemalloc
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from daskqueue_core.batch import Batch, Keep, Kind, lengths_column
from daskqueue_core.queue import TransientQueue

DELAYED = "1,000,000 delayed messages: bytes each, beside their payloads"
MESSAGES = 1_000_000
BATCH = 1_000
HOUR = 3_600 * 10**9


def batch(first: int, count: int, **options: Any) -> Batch:
    """Calls of a client; 8 bytes each."""
    bodies = [b"8 bytes."] * count
    return Batch(count, b"".join(bodies), lengths_column(bodies), kind=Kind.CALL, client=1, first=first,
                 keep=Keep.KEEP, **options)  # fmt: skip


def together() -> Iterator[Batch]:
    """Batches of 1,000 with one time each."""
    for first in range(0, MESSAGES, BATCH):
        yield batch(first, BATCH, ready_at=HOUR + first)


def apart() -> Iterator[Batch]:
    """Submitted one by one with a time each, as the client gathers them."""
    times = random.Random(1)
    for first in range(0, MESSAGES, BATCH):
        yield batch(first, BATCH, ready_ats=array("Q", [HOUR + times.randrange(HOUR) for _ in range(BATCH)]).tobytes())


@pytest.mark.benchmark(group=DELAYED)
@pytest.mark.parametrize("batches", [together, apart])
def test_delayed(benchmark: Any, batches: Callable[[], Iterator[Batch]]) -> None:
    """Nothing of them is due."""
    queue = TransientQueue(clock=lambda: 1)
    payloads = 0
    gc.collect()
    tracemalloc.start()

    def put() -> None:
        nonlocal payloads
        for one in batches():
            payloads += len(one.body)
            queue.admit([one])

    benchmark.pedantic(put, rounds=1)
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] - payloads
    tracemalloc.stop()
    assert queue.stats().scheduled == MESSAGES
    benchmark.extra_info.update(who=batches.__name__, size=MESSAGES, unit="messages/s (traced)")
    benchmark.extra_info["MB in all"] = f"{held / 1e6:.1f}"
