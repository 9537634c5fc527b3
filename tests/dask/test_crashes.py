"""Tasks that kill their worker: found among their neighbours, ended with WorkerCrashed, and nobody else blamed."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Callable
from typing import Any

import pytest

from daskqueue import ConsumerPool, QueuePool, RetryPolicy, WorkerCrashed

LIMIT = 90


def exits() -> None:
    """Ends the process without a word."""
    os._exit(1)


def segfaults() -> None:
    """Reads what is not there."""
    ctypes.string_at(0)


def exhausts_memory() -> None:
    """Takes more than the process may have, and is killed as the kernel would."""
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.RLIM_INFINITY))
    taken = []
    try:
        while True:
            taken.append(bytearray(64 << 20))
    except MemoryError:
        os.kill(os.getpid(), 9)


def twice(n: int) -> int:
    """An innocent neighbour."""
    return 2 * n


@pytest.mark.parametrize("culprit", [exits, pytest.param(segfaults, marks=pytest.mark.slow),
                                     pytest.param(exhausts_memory, marks=pytest.mark.slow)])  # fmt: skip
def test_a_culprit_among_neighbours(new_cluster: Callable[..., Any], culprit: Callable[[], None]) -> None:
    """It is leased together with 200 others; they all succeed, it has crashed as often as it may."""
    _, client = new_cluster(n_workers=2)
    pool = QueuePool(client)
    ConsumerPool(client, pool).start()
    before = [pool.submit(twice, n) for n in range(100)]
    crash = pool.submit(culprit)
    after = [pool.submit(twice, n) for n in range(100, 200)]
    with pytest.raises(WorkerCrashed):
        crash.result(LIMIT)
    assert [future.result(LIMIT) for future in [*before, *after]] == [2 * n for n in range(200)]
    assert [stats.failed for stats in pool.stats()] == [1]
    client.wait_for_workers(2, timeout=LIMIT)


def test_max_crashes(new_cluster: Callable[..., Any], oracle: Any) -> None:
    """A task that ran alone is to blame at once; it runs as often as its policy allows workers to be lost."""
    _, client = new_cluster(n_workers=2)
    pool = QueuePool(client)
    ConsumerPool(client, pool).start()

    def dies() -> None:
        oracle.mark("ran")
        os._exit(1)

    crash = pool.options(retry=RetryPolicy(max_crashes=1)).submit(dies)
    with pytest.raises(WorkerCrashed):
        crash.result(LIMIT)
    # On the queue's own host the count is lost with the queue: once more, then it is a suspect and runs elsewhere.
    assert 1 <= len(oracle.lines()) <= 3
    client.wait_for_workers(2, timeout=LIMIT)  # a cluster is not closed well while a nanny replaces a worker
