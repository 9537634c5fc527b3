"""Shared by the benchmarks: the cluster, the peers' pools, and a summary of rates and ratios.

Everything is measured in one run on the same two processes of one slot each. Absolute figures move with the machine;
the ratio beside the first row of each work is what to compare.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster

from daskqueue import ConsumerPool, QueuePool

WORKERS = 2

sys.path.insert(0, str(Path(__file__).parent))  # workers are spawned with it, and import functions_to_run


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    """Two worker processes of one thread each."""
    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="session")
def pool(client: Client) -> Iterator[QueuePool]:
    """A transient pool of one queue with consumers on both workers, warm."""
    pool = QueuePool(client)
    consumers = ConsumerPool(client, pool)
    consumers.start()
    assert sum(pool.map(abs, range(50_000))) == sum(range(50_000))
    yield pool
    pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def mp_pool() -> Iterator[Any]:
    """`multiprocessing.Pool`, started as Dask starts its workers."""
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        pool.map(abs, range(50_000))
        yield pool


@pytest.fixture(scope="session")
def process_pool() -> Iterator[ProcessPoolExecutor]:
    """`ProcessPoolExecutor`."""
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(abs, range(1000)))
        yield pool


@pytest.fixture(scope="session")
def loky_pool() -> Iterator[Executor]:
    """The executor of joblib."""
    loky = pytest.importorskip("loky")
    pool = loky.get_reusable_executor(max_workers=WORKERS, timeout=600)
    list(pool.map(abs, range(100)))
    yield pool
    pool.shutdown()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Rates per second with their spread, and the ratio to the first of each work."""
    session = getattr(config, "_benchmarksession", None)
    groups: dict[str, list[Any]] = {}
    for bench in session.benchmarks if session is not None else ():
        if bench.stats.rounds:
            groups.setdefault(bench.group, []).append(bench)
    for name, benches in groups.items():
        terminalreporter.write_line(f"\n{name}")
        first = None
        for bench in benches:
            unit, size = bench.extra_info.get("unit", "tasks/s"), bench.extra_info.get("size", 1)
            if unit.endswith("/s"):
                low, mid, high = size / bench.stats.max, size / bench.stats.median, size / bench.stats.min
            else:
                low, mid, high = (1e3 * time for time in (bench.stats.min, bench.stats.median, bench.stats.max))
            first = mid if first is None else first
            who = bench.extra_info.get("who", bench.name)
            line = f"  {who:<34} {mid:>14,.2f} {unit:<8} ({low:,.2f} to {high:,.2f})  x {mid / first:.3f}"
            terminalreporter.write_line(line)
        for bench in benches:
            for key, value in bench.extra_info.items():
                if key not in ("unit", "size", "who"):
                    terminalreporter.write_line(f"    {bench.extra_info.get('who', bench.name)}: {key} {value}")
