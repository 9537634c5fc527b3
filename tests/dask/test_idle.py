"""An idle pool costs nothing: 0.2.0 burned 1.5 cores for ever."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from daskqueue import ConsumerPool, QueuePool

WINDOW_S = 1.0
ROUNDS = 4


def cpu_seconds(pid: int) -> float:
    """CPU time of a process: from its clock, since psutil counts in ticks of 10 ms."""
    try:
        return time.clock_gettime(~pid << 3 | 2)  # clock_getcpuclockid(3)
    except (AttributeError, OSError):
        return sum(psutil.Process(pid).cpu_times()[:2])


@pytest.mark.slow
def test_idle_pool_costs_under_one_percent_of_a_core(new_cluster: Callable[..., Any]) -> None:
    """Scheduler, client and workers together, idle pool against the bare cluster, in alternating windows."""
    _, client = new_cluster()
    pids = [os.getpid(), *client.run(os.getpid).values()]

    def window() -> float:
        """Share of a core."""
        before = sum(map(cpu_seconds, pids)), time.monotonic()
        threading.Event().wait(WINDOW_S)
        return (sum(map(cpu_seconds, pids)) - before[0]) / (time.monotonic() - before[1])

    def with_pool() -> float:
        with QueuePool(client) as pool:
            with ConsumerPool(client, pool):
                assert list(pool.map(abs, range(100), timeout=10)) == list(range(100))
                pool.join(timeout=10)
                return window()

    with_pool()  # everything is imported and connected
    bare, idle = [], []
    for _ in range(ROUNDS):
        bare.append(window())
        idle.append(with_pool())
    # the lowest of each: a busy machine only adds
    assert min(idle) - min(bare) < 0.01, f"shares of a core: {idle} with a pool, {bare} without"
