"""W8: a worker is killed while 30 tasks of 0.3 s run; the consumer's, and the queue's host."""

from __future__ import annotations

import collections
import os
import pathlib
import signal
import time
from typing import Any

import pytest
from distributed import Client, LocalCluster
from functions_to_run import append

from daskqueue import ConsumerPool, QueuePool

W8 = "W8 SIGKILL of a worker, 30 x 0.3 s on 3 workers"
TASKS = 30


@pytest.mark.benchmark(group=W8)
@pytest.mark.parametrize("victim", ["consumer", "host"])
def test_w8(benchmark: Any, tmp_path: pathlib.Path, victim: str) -> None:
    """Which tasks were lost, which ran twice, and how soon another result came."""
    path = str(tmp_path / "runs")
    with (
        LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster,
        Client(cluster) as client,
        QueuePool(client) as pool,
        ConsumerPool(client, pool),
    ):
        pids = client.run(os.getpid)
        host = pool._connection.route.places[0].address
        chosen = host if victim == "host" else next(address for address in pids if address != host)

        def run() -> float:
            futures = [pool.submit(append, path, number, 0.3) for number in range(TASKS)]
            while sum(future.done() for future in futures) < 6:
                time.sleep(0.002)
            os.kill(pids[chosen], signal.SIGKILL)
            killed, lines = time.perf_counter(), count(path)
            while count(path) <= lines + 2:  # those that ran elsewhere end by themselves
                time.sleep(0.002)
            resumed = time.perf_counter() - killed
            assert sorted(future.result(60) for future in futures) == list(range(TASKS))
            return resumed

        resumed = benchmark.pedantic(run, rounds=1)
    runs = collections.Counter(line.split()[0] for line in pathlib.Path(path).read_text().splitlines())
    benchmark.extra_info.update(who=f"daskqueue, {victim} killed", size=TASKS, unit="tasks/s")
    benchmark.extra_info["lost"] = TASKS - len(runs)
    benchmark.extra_info["ended twice"] = sum(times > 1 for times in runs.values())
    benchmark.extra_info["s until a third task ended"] = f"{resumed:.2f}"


def count(path: str) -> int:
    """Lines in the file."""
    return pathlib.Path(path).read_text().count("\n") if os.path.exists(path) else 0
