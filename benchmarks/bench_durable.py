"""W9 and W10: what a pool on disk costs beside one in memory, and ten million tasks through one durable queue.

nox -s bench -- benchmarks/bench_durable.py
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bench_tools import Resident, measure
from distributed import Client, LocalCluster
from functions_to_run import same

from daskqueue import ConsumerPool, QueuePool

W9 = "W9 empty tasks through map, values back, durable beside transient"
W9S = "W9 one submit() each, a future each, durable beside transient"
W10 = "W10 tasks through one durable queue, a million at a time"
TASKS = 1_000_000
SUBMITS = 50_000
ROUNDS = int(os.environ.get("W10_MILLIONS", "10"))


@pytest.fixture
def start(client: Client, tmp_path: Path) -> Iterator[Callable[..., QueuePool]]:
    """A pool with its consumers; durable if it is told how to sync."""
    pools: list[QueuePool] = []

    def make(sync: Any) -> QueuePool:
        options = {} if sync is None else {"durability": "durable", "dirpath": tmp_path / "pool", "sync": sync}
        pools.append(QueuePool(client, **options))
        ConsumerPool(client, pools[-1]).start()
        list(pools[-1].map(same, range(20_000)))
        return pools[-1]

    yield make
    for pool in pools:
        pool.shutdown(wait=False, cancel_futures=True)


KINDS = pytest.mark.parametrize(
    ("who", "sync"),
    [("transient", None), ("durable, sync=batch", "batch"), ("durable, sync=0.5", 0.5), ("durable, sync=none", "none")],
)


@pytest.mark.benchmark(group=W9)
@KINDS
def test_w9(benchmark: Any, start: Callable[..., QueuePool], who: str, sync: Any) -> None:
    """`map` of a million."""
    pool = start(sync)
    assert measure(benchmark, lambda: sum(pool.map(same, range(TASKS))), who=who, size=TASKS) == sum(range(TASKS))


@pytest.mark.benchmark(group=W9S)
@KINDS
def test_w9_submit(benchmark: Any, start: Callable[..., QueuePool], who: str, sync: Any) -> None:
    """A future each."""
    pool = start(sync)

    def run() -> int:
        futures = [pool.submit(same, number) for number in range(SUBMITS)]
        return sum(future.result() for future in futures)

    assert measure(benchmark, run, who=who, size=SUBMITS) == sum(range(SUBMITS))


@pytest.mark.benchmark(group=W10)
def test_w10(benchmark: Any, tmp_path: Path) -> None:
    """Memory and disk are printed along the way, and at the end, when the queue is empty."""
    said: list[str] = []
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster,
        Client(cluster) as client,
        QueuePool(client, durability="durable", dirpath=tmp_path / "pool", sync="none") as pool,
        ConsumerPool(client, pool),
    ):
        workers = {f"worker {number}": pid for number, pid in enumerate(client.run(os.getpid).values())}

        def million() -> None:
            began = time.perf_counter()
            assert sum(pool.map(same, range(TASKS))) == sum(range(TASKS))
            rate, disk = TASKS / (time.perf_counter() - began), disk_bytes(tmp_path)
            said.append(f"{rate / 1e6:.2f} M/s, {disk / 2**20:.0f} MiB on disk")

        with Resident({"client and scheduler": os.getpid(), **workers}) as peaks:
            measure(benchmark, million, who="daskqueue map, durable", size=TASKS, rounds=max(1, ROUNDS - 1))
        assert pool.stats()[0].unfinished == 0
    benchmark.extra_info.update({f"MiB before, at most: {who}": peak for who, peak in peaks.items()})
    benchmark.extra_info["each million"] = "; ".join(said)
    benchmark.extra_info["MiB on disk when closed"] = f"{disk_bytes(tmp_path) / 2**20:.1f}"


def disk_bytes(path: Path) -> int:
    """What all files below take."""
    sizes = []
    for file in path.rglob("*"):
        try:
            sizes.append(file.stat().st_size if file.is_file() else 0)
        except FileNotFoundError:  # it was let go meanwhile
            continue
    return sum(sizes)
