"""Task queue benchmarks: W1, W1s, W2, W3, W6 and memory, beside the pools of the standard library and Dask itself.

    nox -s bench

Each work is a group; the first row is daskqueue, and the ratios of the others are to it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import psutil
import pytest
from distributed import Client, LocalCluster
from functions_to_run import same, spin

from daskqueue import ConsumerPool, QueuePool

W1 = "W1 empty tasks, values back"
W1S = "W1s one submit() each, a future each"
W2 = "W2 one task, submit to result, idle"
W3 = "W3 1 ms of CPU each, share of ideal"
W6 = "W6 idle CPU over the bare cluster"
MEMORY = "1,000,000 tasks through map: values and memory"

TASKS = 1_000_000
SUBMITS = 50_000


def measure(
    benchmark: Any, run: Callable[[], Any], *, who: str, size: int, unit: str = "tasks/s", rounds: int = 5
) -> Any:
    """Run `rounds` times and note what a round is."""
    benchmark.extra_info.update(who=who, size=size, unit=unit)
    return benchmark.pedantic(run, rounds=rounds, iterations=1, warmup_rounds=1)


@pytest.mark.benchmark(group=W1)
def test_w1_daskqueue(benchmark: Any, pool: QueuePool) -> None:
    """`map` of a million."""
    total = measure(benchmark, lambda: sum(pool.map(same, range(TASKS))), who="daskqueue map", size=TASKS)
    assert total == sum(range(TASKS))


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
def test_w1s_process_pool(benchmark: Any, process_pool: ProcessPoolExecutor) -> None:
    """The executor people know."""
    size = SUBMITS // 5

    def run() -> int:
        futures = [process_pool.submit(same, index) for index in range(size)]
        return sum(future.result() for future in futures)

    measure(benchmark, run, who="ProcessPoolExecutor submit", size=size, rounds=3)


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
def test_w2_process_pool(benchmark: Any, process_pool: ProcessPoolExecutor) -> None:
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


def percentile(benchmark: Any, share: float) -> float:
    """Of the rounds measured, in seconds."""
    times = sorted(benchmark.stats.stats.data)
    return float(times[int(share * (len(times) - 1))])


@pytest.mark.benchmark(group=W3)
def test_w3_daskqueue(benchmark: Any, pool: QueuePool) -> None:
    """4,000 tasks on two slots: ideal is 2 s, which is 2,000 tasks/s."""
    measure(benchmark, lambda: list(pool.map(spin, range(4000))), who="daskqueue map", size=4000, rounds=3)
    benchmark.extra_info["share of ideal"] = f"{2.0 / benchmark.stats.stats.median:.0%}"


@pytest.mark.benchmark(group=W3)
def test_w3_process_pool(benchmark: Any, process_pool: ProcessPoolExecutor) -> None:
    """The same on the executor people know."""
    measure(
        benchmark, lambda: list(process_pool.map(spin, range(4000))), who="ProcessPoolExecutor map", size=4000, rounds=3
    )
    benchmark.extra_info["share of ideal"] = f"{2.0 / benchmark.stats.stats.median:.0%}"


@pytest.mark.benchmark(group=MEMORY)
def test_memory(benchmark: Any) -> None:
    """A million values checked, in a fresh cluster; the largest resident size of every process meanwhile."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster,
        Client(cluster) as client,
        QueuePool(client) as pool,
        ConsumerPool(client, pool),
    ):
        list(pool.map(same, range(10_000)))
        host = client.run(os.getpid)
        with resident(
            {"client and scheduler": os.getpid(), **{f"worker {pid}": pid for pid in host.values()}}
        ) as peaks:

            def run() -> int:
                return sum(int(value == index) for index, value in enumerate(pool.map(same, range(TASKS))))

            assert measure(benchmark, run, who="daskqueue map", size=TASKS, rounds=3) == TASKS
            benchmark.extra_info["left in the queue"] = sum(stats.nbytes for stats in pool.stats())
    benchmark.extra_info.update({f"MiB before, at most: {who}": peak for who, peak in peaks.items()})


class resident:  # noqa: N801  # reads as a statement
    """Watches the resident size of processes from a thread: `{name: "before, peak"}` in MiB."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._stop = threading.Event()
        self.peaks: dict[str, str] = {}

    def __enter__(self) -> dict[str, str]:
        self._before = {name: process.memory_info().rss for name, process in self._processes.items()}
        self._most = dict(self._before)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self.peaks

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            for name, process in self._processes.items():
                self._most[name] = max(self._most[name], process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for name, most in self._most.items():
            self.peaks[name] = f"{self._before[name] / 2**20:.0f}, {most / 2**20:.0f}"


@pytest.mark.benchmark(group=W6)
def test_w6_idle(benchmark: Any) -> None:
    """CPU of all processes while nothing happens: windows with and without a pool in turn, on one cluster."""
    window = float(os.environ.get("IDLE_WINDOW_S", "15"))
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster,
        Client(cluster) as client,
    ):
        processes = [psutil.Process(pid) for pid in (os.getpid(), *client.run(os.getpid).values())]
        bare, idle = [], []
        for _ in range(3):
            bare.append(share_of_core(processes, window))
            with QueuePool(client, n_queues=2) as pool, ConsumerPool(client, pool):
                assert list(pool.map(same, range(100))) == list(range(100))
                idle.append(share_of_core(processes, window))
        bare.append(share_of_core(processes, window))
    benchmark.extra_info.update(who="daskqueue idle", unit="ms", size=1)
    benchmark.extra_info["% of a core, bare cluster"] = ", ".join(f"{share:.2f}" for share in bare)
    benchmark.extra_info["% of a core, with an idle pool"] = ", ".join(f"{share:.2f}" for share in idle)
    benchmark.pedantic(lambda: None)


def share_of_core(processes: list[psutil.Process], seconds: float) -> float:
    """CPU of these processes over a window, in percent of a core."""

    def used() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    before = used()
    time.sleep(seconds)
    return 100 * (used() - before) / seconds
