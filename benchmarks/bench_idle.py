"""W6: what a pool costs while nothing happens."""

from __future__ import annotations

import os
import statistics
from typing import Any

import psutil
import pytest
from bench_tools import share_of_core
from distributed import Client, LocalCluster
from functions_to_run import same

from daskqueue import ConsumerPool, QueuePool

W6 = "W6 idle CPU over the bare cluster"
WINDOW_S = float(os.environ.get("IDLE_WINDOW_S", "60"))


@pytest.mark.benchmark(group=W6)
@pytest.mark.timeout(12 * WINDOW_S)
def test_w6_idle(benchmark: Any) -> None:
    """CPU of all processes: windows with and without a pool in turn, on one cluster."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster,
        Client(cluster) as client,
    ):
        processes = [psutil.Process(pid) for pid in (os.getpid(), *client.run(os.getpid).values())]
        bare, idle = [], []
        share_of_core(processes, WINDOW_S / 4)
        for _ in range(3):
            bare.append(share_of_core(processes, WINDOW_S))
            with QueuePool(client) as pool, ConsumerPool(client, pool):
                assert list(pool.map(same, range(100))) == list(range(100))
                idle.append(share_of_core(processes, WINDOW_S))
    benchmark.extra_info.update(who="daskqueue idle", unit="ms", size=1)
    benchmark.extra_info["% of a core, bare cluster"] = ", ".join(f"{share:.2f}" for share in bare)
    benchmark.extra_info["% of a core, with an idle pool"] = ", ".join(f"{share:.2f}" for share in idle)
    benchmark.extra_info["difference of medians"] = f"{statistics.median(idle) - statistics.median(bare):.2f}"
    benchmark.pedantic(lambda: None)
