"""Task queue benchmarks W1, W1s, W2 and W3, beside the pools of the standard library, loky and Dask itself.

    nox -s bench

Each work is a group; the first row is daskqueue, and the ratios of the others are to it.
"""

from __future__ import annotations

import time
from concurrent.futures import Executor
from typing import Any

import pytest
from bench_tools import measure, percentile
from distributed import Client
from functions_to_run import same, spin

from daskqueue import QueuePool

W1 = "W1 empty tasks, values back"
W1S = "W1s one submit() each, a future each"
W2 = "W2 one task, submit to result, idle"
W3 = "W3 1 ms of CPU each, share of ideal"

TASKS = 1_000_000
SUBMITS = 50_000


@pytest.mark.benchmark(group=W1)
def test_w1_daskqueue(benchmark: Any, pool: QueuePool) -> None:
    """`map` of a million."""
    total = measure(benchmark, lambda: sum(pool.map(same, range(TASKS))), who="daskqueue map", size=TASKS)
    assert total == sum(range(TASKS))


@pytest.mark.benchmark(group=W1)
def test_w1_daskqueue_generator(benchmark: Any, pool: QueuePool) -> None:
    """`map` of a million that cannot be sliced."""
    run = measure(
        benchmark, lambda: sum(pool.map(same, iter(range(TASKS)))), who="daskqueue map, generator", size=TASKS
    )
    assert run == sum(range(TASKS))


@pytest.mark.benchmark(group=W1)
def test_w1_daskqueue_batch(benchmark: Any, pool: QueuePool) -> None:
    """`submit_many` of a million, its results decoded."""

    def run() -> int:
        return sum(pool.submit_many(same, range(TASKS)).results())

    assert measure(benchmark, run, who="daskqueue submit_many", size=TASKS) == sum(range(TASKS))


@pytest.mark.benchmark(group=W1)
def test_w1_imap_unordered_1000(benchmark: Any, mp_pool: Any) -> None:
    """The fastest of the standard library."""

    def run() -> int:
        return sum(mp_pool.imap_unordered(same, range(TASKS), chunksize=1000))

    measure(benchmark, run, who="imap_unordered, chunksize 1000", size=TASKS)


@pytest.mark.benchmark(group=W1)
def test_w1_imap_unordered(benchmark: Any, mp_pool: Any) -> None:
    """As people write it."""

    def run() -> int:
        return sum(mp_pool.imap_unordered(same, range(SUBMITS)))

    measure(benchmark, run, who="imap_unordered, chunksize 1", size=SUBMITS, rounds=3)


@pytest.mark.benchmark(group=W1)
def test_w1_dask_map(benchmark: Any, client: Client) -> None:
    """Through Dask's scheduler."""

    def run() -> int:
        return sum(client.gather(client.map(same, range(1000), pure=False)))

    measure(benchmark, run, who="dask client.map", size=1000, rounds=3)


@pytest.mark.benchmark(group=W1S)
def test_w1s_daskqueue(benchmark: Any, pool: QueuePool) -> None:
    """A loop of submits, then every result."""

    def run() -> int:
        start = time.perf_counter()
        futures = [pool.submit(same, index) for index in range(SUBMITS)]
        benchmark.extra_info["submit() calls a second"] = f"{SUBMITS / (time.perf_counter() - start):,.0f}"
        return sum(future.result() for future in futures)

    assert measure(benchmark, run, who="daskqueue submit", size=SUBMITS) == sum(range(SUBMITS))


@pytest.mark.benchmark(group=W1S)
def test_w1s_process_pool(benchmark: Any, process_pool: Executor) -> None:
    """The executor people know."""
    size = SUBMITS // 5

    def run() -> int:
        futures = [process_pool.submit(same, index) for index in range(size)]
        return sum(future.result() for future in futures)

    measure(benchmark, run, who="ProcessPoolExecutor submit", size=size, rounds=3)


@pytest.mark.benchmark(group=W1S)
def test_w1s_loky(benchmark: Any, loky_pool: Executor) -> None:
    """The executor of joblib."""
    size = SUBMITS // 10

    def run() -> int:
        futures = [loky_pool.submit(same, index) for index in range(size)]
        return sum(future.result() for future in futures)

    measure(benchmark, run, who="loky submit", size=size, rounds=3)


@pytest.mark.benchmark(group=W1S)
def test_w1s_dask_submit(benchmark: Any, client: Client) -> None:
    """Through Dask's scheduler."""

    def run() -> int:
        return sum(client.gather([client.submit(same, index, pure=False) for index in range(1000)]))

    measure(benchmark, run, who="dask client.submit", size=1000, rounds=3)


@pytest.mark.benchmark(group=W2)
def test_w2_daskqueue(benchmark: Any, pool: QueuePool) -> None:
    """A round trip of one task."""
    measure(benchmark, lambda: pool.submit(same, 1).result(), who="daskqueue submit", size=1, unit="ms", rounds=500)
    benchmark.extra_info["p99 ms"] = f"{1e3 * percentile(benchmark, 0.99):.2f}"


@pytest.mark.benchmark(group=W2)
def test_w2_process_pool(benchmark: Any, process_pool: Executor) -> None:
    """A round trip of one task."""
    measure(
        benchmark,
        lambda: process_pool.submit(same, 1).result(),
        who="ProcessPoolExecutor",
        size=1,
        unit="ms",
        rounds=500,
    )


@pytest.mark.benchmark(group=W2)
def test_w2_dask(benchmark: Any, client: Client) -> None:
    """A round trip of one task."""
    measure(
        benchmark,
        lambda: client.submit(same, 1, pure=False).result(),
        who="dask client.submit",
        size=1,
        unit="ms",
        rounds=100,
    )


@pytest.mark.benchmark(group=W3)
def test_w3_daskqueue(benchmark: Any, pool: QueuePool) -> None:
    """4,000 tasks on two slots: ideal is 2 s, which is 2,000 tasks/s."""
    measure(benchmark, lambda: list(pool.map(spin, range(4000))), who="daskqueue map", size=4000, rounds=3)
    benchmark.extra_info["share of ideal"] = f"{2.0 / benchmark.stats.stats.median:.0%}"


@pytest.mark.benchmark(group=W3)
def test_w3_process_pool(benchmark: Any, process_pool: Executor) -> None:
    """The same on the executor people know."""
    measure(
        benchmark, lambda: list(process_pool.map(spin, range(4000))), who="ProcessPoolExecutor map", size=4000, rounds=3
    )
    benchmark.extra_info["share of ideal"] = f"{2.0 / benchmark.stats.stats.median:.0%}"
