"""W7 and the million: what tasks cost in memory, in all processes."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from bench_tools import Resident, measure, rss
from distributed import Client, LocalCluster
from functions_to_run import kilobyte, same

from daskqueue import ConsumerPool, QueuePool

W7 = "W7 memory per queued small task, all processes"
MILLION = "1,000,000 tasks through map: values and memory"
RESULTS = "2,000,000 results of 1 KB through map: memory"
TASKS = 1_000_000


def queued(benchmark: Any, who: str, count: int, submit: Callable[[QueuePool], Any]) -> None:
    """Submit without consumers to a fresh cluster and note the bytes a task."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster:
        with Client(cluster) as client:
            processes = [psutil.Process(pid) for pid in (os.getpid(), *client.run(os.getpid).values())]
            pool = QueuePool(client)
            pool.submit(same, 0)
            pool.flush()
            gc.collect()
            before = rss(processes)
            kept = benchmark.pedantic(lambda: submit(pool), rounds=1)
            pool.flush()
            gc.collect()
            per_task = (rss(processes) - before) / count
            assert kept is not None
            pool.shutdown(wait=False, cancel_futures=True)
    benchmark.extra_info.update(who=who, size=count, unit="tasks/s")
    benchmark.extra_info["bytes a task"] = f"{per_task:.1f}"


@pytest.mark.benchmark(group=W7)
def test_w7_submit_many(benchmark: Any) -> None:
    """One object for all."""
    queued(benchmark, "submit_many", 4 * TASKS, lambda pool: pool.submit_many(same, iter(range(4 * TASKS))))


@pytest.mark.benchmark(group=W7)
def test_w7_submit(benchmark: Any) -> None:
    """A future each."""
    count = 200_000
    queued(benchmark, "submit", count, lambda pool: [pool.submit(same, number) for number in range(count)])


@pytest.mark.benchmark(group=MILLION)
def test_million(benchmark: Any) -> None:
    """A million values checked, in a fresh cluster; the largest resident size of every process meanwhile."""
    watched(benchmark, lambda pool: all(map(int.__eq__, pool.map(same, range(TASKS)), range(TASKS))), TASKS)


@pytest.mark.benchmark(group=RESULTS)
def test_results(benchmark: Any) -> None:
    """Interleaving 18: results that pile up hold the consumers back."""
    watched(
        benchmark, lambda pool: all(len(value) == 1024 for value in pool.map(kilobyte, range(2 * TASKS))), 2 * TASKS
    )


def watched(benchmark: Any, run: Callable[[QueuePool], bool], size: int) -> None:
    """Run once for nothing and once while the sizes are watched."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster,
        Client(cluster) as client,
        QueuePool(client) as pool,
        ConsumerPool(client, pool),
    ):
        list(pool.map(same, range(10_000)))
        workers = {f"worker {number}": pid for number, pid in enumerate(client.run(os.getpid).values())}
        with Resident({"client and scheduler": os.getpid(), **workers}) as peaks:
            assert measure(benchmark, lambda: run(pool), who="daskqueue map", size=size, rounds=2)
        benchmark.extra_info["left in the queue"] = sum(stats.nbytes for stats in pool.stats())
    benchmark.extra_info.update({f"MiB before, at most: {who}": peak for who, peak in peaks.items()})
