"""W4: arguments of 100 KB, different bytes each."""

from __future__ import annotations

import os
from concurrent.futures import Executor
from typing import Any

import pytest
from bench_tools import measure
from distributed import Client

from daskqueue import QueuePool

W4 = "W4 100 KB arguments"
SIZE = 100_000
COUNT = 1000
MB = SIZE * COUNT / 1e6


@pytest.fixture(scope="module")
def payloads() -> list[bytes]:
    """Made once, so that making them is not measured."""
    return [os.urandom(SIZE) for _ in range(COUNT)]


@pytest.mark.benchmark(group=W4)
def test_w4_daskqueue(benchmark: Any, pool: QueuePool, payloads: list[bytes]) -> None:
    """Through `map`."""
    lengths = measure(benchmark, lambda: list(pool.map(len, payloads)), who="daskqueue map", size=MB, unit="MB/s")
    assert lengths == [SIZE] * COUNT


@pytest.mark.benchmark(group=W4)
def test_w4_imap_unordered(benchmark: Any, mp_pool: Any, payloads: list[bytes]) -> None:
    """Over pipes."""

    def run() -> int:
        return sum(mp_pool.imap_unordered(len, payloads, chunksize=10))

    measure(benchmark, run, who="imap_unordered, chunksize 10", size=MB, unit="MB/s")


@pytest.mark.benchmark(group=W4)
def test_w4_process_pool(benchmark: Any, process_pool: Executor, payloads: list[bytes]) -> None:
    """Over pipes."""
    measure(benchmark, lambda: list(process_pool.map(len, payloads)), who="ProcessPoolExecutor", size=MB, unit="MB/s")


@pytest.mark.benchmark(group=W4)
def test_w4_dask(benchmark: Any, client: Client, payloads: list[bytes]) -> None:
    """Through Dask's scheduler."""
    some = payloads[:200]

    def run() -> int:
        return sum(client.gather(client.map(len, some, pure=False)))

    measure(benchmark, run, who="dask client.map", size=len(some) * SIZE / 1e6, unit="MB/s", rounds=3)
