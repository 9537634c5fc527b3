"""W11: 64 workers of one process long-poll one queue; what waking one costs must not depend on how many wait.

nox -s bench -- benchmarks/bench_growth.py
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from bench_tools import measure
from distributed import Client, LocalCluster
from functions_to_run import same

from daskqueue import ConsumerPool, QueuePool

W11 = "W11 tasks one after the other through one queue, all other consumers waiting"
SUBMITS = 500
IDLE_S = 5.0
MANY = (1, 4, 16, 64)


@pytest.fixture(params=MANY)
def waiting(request: pytest.FixtureRequest) -> Iterator[tuple[int, QueuePool]]:
    """A queue for which so many consumers wait, of 64 workers."""
    with (
        LocalCluster(
            n_workers=MANY[-1],
            threads_per_worker=1,
            processes=False,
            dashboard_address=None,
            memory_limit=0,
            silence_logs=50,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
        QueuePool(client) as pool,
        ConsumerPool(client, pool, n_consumers=request.param),
    ):
        list(pool.map(same, range(1000)))
        yield request.param, pool


@pytest.mark.benchmark(group=W11)
def test_w11(benchmark: Any, waiting: tuple[int, QueuePool]) -> None:
    """CPU time a task of the one process that does everything, without what 64 idle Dask workers take beside it."""
    many, pool = waiting
    rounds: list[tuple[float, float]] = []

    def run() -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        for number in range(SUBMITS):
            pool.submit(same, number).result()
        rounds.append((time.process_time() - cpu, time.perf_counter() - wall))

    cpu, wall = time.process_time(), time.perf_counter()
    time.sleep(IDLE_S)
    idle = (time.process_time() - cpu) / (time.perf_counter() - wall)
    measure(benchmark, run, who=f"{many} consumers", size=SUBMITS)
    net = sorted(cpu - idle * wall for cpu, wall in rounds)[len(rounds) // 2]
    benchmark.extra_info["ms of CPU a task"] = f"{net / SUBMITS * 1e3:.2f}"
    benchmark.extra_info["% of a core when idle"] = f"{100 * idle:.1f}"
