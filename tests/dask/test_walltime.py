"""Jobs that end, on a cluster: consumers leave before, and long tasks go only where there is time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, get_worker

from daskqueue import ConsumerBaseClass, ConsumerPool, QueuePool
from daskqueue.client.task_options import choose
from daskqueue.testing import Oracle
from daskqueue_core.batch import Batch, Kind
from daskqueue_core.queue import Demand
from daskqueue_storage import DurableQueue

LIMIT = 60
END = "SLURM_JOB_END_TIME"


@pytest.fixture
def two(new_workers: Callable[..., Any]) -> Any:
    """Two workers of one thread, each a process: their client, and where they are."""
    workers = new_workers(2)
    return workers.client, *sorted(workers.client.scheduler_info(n_workers=-1)["workers"])


def end_in(client: Client, address: str, seconds: float) -> None:
    """Let the job of a worker end then: for consumers that begin there later."""
    client.run(set_end, time.time() + seconds, workers=[address])


def set_end(end: float) -> None:
    """In a worker's environment."""
    os.environ[END] = str(end)


def leave(dask_worker: Any) -> None:
    """The time has come."""
    node = dask_worker.plugins["daskqueue"]
    for actor in list(node.consumers.values()):
        node.leave(actor)


def consuming(dask_worker: Any) -> int:
    """How many consumer pools a worker runs, or still ends."""
    return len(dask_worker.plugins["daskqueue"].consumers)


def where(_: Any = None) -> str:
    """On which worker."""
    return str(get_worker().address)


def test_consumers_leave(two: Any, oracle: Oracle, new_gate: Callable[[], Any], eventually: Callable[..., Any]) -> None:
    """What runs is finished, what has not begun runs elsewhere, nothing twice; others take their place."""
    client, one, other = two
    with QueuePool(client) as pool, ConsumerPool(client, pool, n_consumers=2, concurrency=1) as consumers:
        gate = new_gate()
        running = [pool.submit(gate, n) for n in range(2)]
        eventually(lambda: gate.count("came") == 2)
        waiting = pool.submit_many(oracle.mark, range(50))
        client.run(leave, workers=[one])
        eventually(lambda: pool.health().leaving == (one,))
        assert pool.health().consumers == 2
        assert client.run(consuming) == {one: 1, other: 1}, "it still runs something"
        gate.open()
        eventually(lambda: client.run(consuming) == {one: 0, other: 1})
        assert [future.result(LIMIT) for future in running] == [0, 1]
        consumers.join(timeout=LIMIT)
        assert waiting.counts() == (0, 50, 0)
        assert sorted(map(int, oracle.lines())) == list(range(50))
        assert gate.count("came") == 2
        assert {pool.submit(where).result(LIMIT) for _ in range(8)} == {other}


@pytest.mark.parametrize("durable", [False, True])
def test_queues_leave_too(
    two: Any,
    oracle: Oracle,
    new_gate: Callable[[], Any],
    eventually: Callable[..., Any],
    victims: Any,
    tmp_path: Path,
    durable: bool,
) -> None:
    """However hard the job then ends, it takes nothing along: neither items, which nobody can put again, nor time."""

    class Mark(ConsumerBaseClass):
        def process_item(self, item: int) -> None:
            oracle.mark(item)

    client, _, _ = two
    options = {"durability": "durable", "dirpath": tmp_path / "pool"} if durable else {}
    with QueuePool(client, **options) as pool, ConsumerPool(client, pool, concurrency=1):
        gate = new_gate()
        running = [pool.submit(gate, n) for n in range(2)]
        eventually(lambda: gate.count("came") == 2)
        waiting = pool.submit_many(oracle.mark, range(50))
        pool.put_many(range(50, 60))
        host = victims(client).host(pool)
        client.run(leave, workers=[host])
        eventually(lambda: victims(client).host(pool) not in ("", host))
        gate.open()
        assert [future.result(LIMIT) for future in running] == [0, 1]
        eventually(lambda: client.run(consuming, workers=[host]) == {host: 0})
        victims(client).kill(host)
        with ConsumerPool(client, pool, Mark):
            pool.join(timeout=LIMIT)
        assert waiting.counts() == (0, 50, 0)
        assert oracle.counts() == {str(n): 1 for n in range(60)}
        assert gate.count("came") == 2


def test_drain_waits_for_those_that_left(two: Any, new_gate: Callable[[], Any], eventually: Callable[..., Any]) -> None:
    """What they run is finished first, wherever it is."""
    client, one, other = two
    with QueuePool(client) as pool:
        consumers = ConsumerPool(client, pool, concurrency=1)
        consumers.start()
        gate = new_gate()
        running = [pool.submit(gate, n) for n in range(2)]
        eventually(lambda: gate.count("came") == 2)
        for address in (one, other):
            client.run(leave, workers=[address])
        eventually(lambda: pool.health().leaving == (one, other))
        assert not consumers.drain(timeout=0.1)
        gate.open()
        assert [future.result(LIMIT) for future in running] == [0, 1]


def test_the_timer(two: Any, oracle: Oracle, eventually: Callable[..., Any]) -> None:
    """The end comes from the worker's environment; in the midst of work nothing is lost and nothing runs twice."""
    client, one, _ = two
    end_in(client, one, 3601)
    with QueuePool(client) as pool, ConsumerPool(client, pool, drain_before="1h", concurrency=2) as consumers:
        batches = [pool.submit_many(oracle.mark, range(100))]
        while pool.health().leaving != (one,):
            start = 100 * len(batches)
            batches.append(pool.submit_many(oracle.mark, range(start, start + 100)))
            batches[-1].wait(LIMIT)
        batches.append(pool.submit_many(oracle.mark, range(100 * len(batches), 100 * len(batches) + 100)))
        consumers.join(timeout=LIMIT)
        assert sorted(map(int, oracle.lines())) == list(range(100 * len(batches)))
        eventually(lambda: client.run(consuming, workers=[one]) == {one: 0})


def test_too_late_to_begin(two: Any) -> None:
    """A worker that is near its end gets no consumers; the number that was asked for runs elsewhere."""
    client, one, other = two
    end_in(client, one, 600)
    with QueuePool(client) as pool, ConsumerPool(client, pool, n_consumers=4, concurrency=1, drain_before="1h"):
        assert set(pool.map(where, range(50))) == {other}
        health = pool.health()
        assert (health.ok, health.leaving, health.consumers) == (True, (one,), 4)


def test_all_have_left(new_workers: Callable[..., Any], eventually: Callable[..., Any]) -> None:
    """Work waits for a worker of another job, and health says so."""
    workers = new_workers(1)
    client = workers.client
    end_in(client, next(iter(client.scheduler_info(n_workers=-1)["workers"])), 600)
    with QueuePool(client) as pool, ConsumerPool(client, pool, drain_before="1h"):
        future = pool.submit(where)
        pool.flush()
        eventually(lambda: any("they have left all 1 worker(s)" in problem for problem in pool.health().problems))
        assert not future.done()
        workers.add(1)
        assert future.result(LIMIT) not in pool.health().leaving
        assert pool.health().ok


@pytest.mark.parametrize("durable", [False, True])
def test_time_request(
    new_workers: Callable[..., Any], eventually: Callable[..., Any], tmp_path: Any, durable: bool
) -> None:
    """A task that takes too long for the jobs there are waits for one that lasts; others pass it by."""
    workers = new_workers(1)
    client = workers.client
    (short,) = client.scheduler_info(n_workers=-1)["workers"]
    end_in(client, short, 600)
    options = {"durability": "durable", "dirpath": tmp_path / "pool"} if durable else {}
    with QueuePool(client, **options) as pool, ConsumerPool(client, pool):
        long = pool.options(time_request="20m").submit(where)
        fits = pool.options(time_request="5m").submit(where)
        assert fits.result(LIMIT) == pool.submit(where).result(LIMIT) == short
        assert not long.done()
        eventually(lambda: any("that need 1200 s wait" in problem for problem in pool.health().problems))
        workers.add(1)
        assert long.result(LIMIT) != short
        assert pool.health().ok


def test_a_parked_request_loses_time(two: Any, eventually: Callable[..., Any]) -> None:
    """What was enough when a consumer asked may not be when the task comes."""
    client, _, _ = two
    end = datetime.now(timezone.utc) + timedelta(seconds=62)
    with QueuePool(client) as pool, ConsumerPool(client, pool, walltime=end):
        assert pool.submit(where).result(LIMIT)  # from now on they are parked, with up to 62 s left
        # not just 60 s: the queue counts from when the request came
        eventually(lambda: datetime.now(timezone.utc) > end - timedelta(seconds=59))
        late = pool.options(time_request=60).submit(where)
        pool.flush()
        eventually(lambda: any("that need 60 s wait" in problem for problem in pool.health().problems))
        assert late.cancel(), "it has not begun"


def test_requests_are_recorded(tmp_path: Path) -> None:
    """A queue that is opened again asks for as much time, from its log and from its snapshot."""
    asked = Batch(1, b"long", kind=Kind.CALL, tags=choose({"time_request": "20m"}).tags)
    with DurableQueue(tmp_path / "q") as queue:
        queue.admit([asked])
    for _ in range(2):
        with DurableQueue(tmp_path / "q") as queue:
            assert queue.lease(1, demand=Demand(1, time_left=1199.0)) is None
            assert queue.depth().waiting == ((Kind.CALL, ("time>=1200",), 1),)
            lease = queue.lease(1, demand=Demand(1, time_left=1200.0))
            assert lease is not None
            queue.release(lease)
