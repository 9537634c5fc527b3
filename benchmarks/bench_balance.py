"""W5: short tasks, then a few long ones, in the worst order; with two functions, and with one for both."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import pytest
from bench_tools import measure
from functions_to_run import nap, short_nap

from daskqueue import QueuePool

W5 = "W5 200 x 20 ms + 4 x 1 s on two slots, ideal 4 s"
IDEAL_S = 4.0


def times_ideal(benchmark: Any) -> None:
    """Note how far from ideal."""
    benchmark.extra_info["x ideal"] = f"{benchmark.stats.stats.median / IDEAL_S:.3f}"


@pytest.mark.benchmark(group=W5)
def test_w5_one_function(benchmark: Any, pool: QueuePool) -> None:
    """The pacing learns 20 ms, and then a call takes a second."""

    def run() -> bool:
        return pool.submit_many(nap, [0.02] * 200 + [1.0] * 4).wait(60)

    assert measure(benchmark, run, who="daskqueue, one function", size=204, rounds=3)
    times_ideal(benchmark)


@pytest.mark.benchmark(group=W5)
def test_w5_two_functions(benchmark: Any, pool: QueuePool) -> None:
    """Functions of their own."""

    def run() -> None:
        batches = pool.submit_many(short_nap, [0.02] * 200), pool.submit_many(nap, [1.0] * 4)
        assert all(batch.wait(60) for batch in batches)

    measure(benchmark, run, who="daskqueue, two functions", size=204, rounds=3)
    times_ideal(benchmark)


@pytest.mark.benchmark(group=W5)
def test_w5_process_pool(benchmark: Any, process_pool: Executor) -> None:
    """The executor people know."""

    def run() -> None:
        list(process_pool.map(nap, [0.02] * 200 + [1.0] * 4))

    measure(benchmark, run, who="ProcessPoolExecutor map", size=204, rounds=2)
    times_ideal(benchmark)
