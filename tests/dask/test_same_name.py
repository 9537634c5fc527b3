"""Pools that end while somebody looks for them, and others that take their name."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from daskqueue import ConsumerPool, QueuePool
from daskqueue_core.errors import PoolClosed, QueueLost
from daskqueue_storage.errors import LockedError

LIMIT = 60


def move(name: str, dask_scheduler: Any) -> None:
    """Let another worker host the pool's first queue: so its place has an epoch."""
    plugin = dask_scheduler.plugins["daskqueue"]
    host = plugin.directory.pools[name].places[0].address
    to = next(address for address in plugin.directory.workers if address != host)
    plugin._orders.carry_out(plugin.directory.move(name, 0, to))


def epoch(name: str, dask_scheduler: Any) -> int:
    """Of the pool's first queue."""
    place = dask_scheduler.plugins["daskqueue"].directory.pools[name].places[0]
    return int(place.epoch) if place.up else -1


def test_shut_down_while_it_is_looked_for(
    new_workers: Callable[..., Any], new_client: Callable[..., Client], victims: Any, eventually: Callable[..., Any]
) -> None:
    """A queue has no host, and its client asks the directory for one, when another client ends the pool."""
    workers = new_workers(1)
    pool = QueuePool(workers.client, name="looked-for")
    theirs = QueuePool.attach(new_client(workers.cluster), "looked-for")
    future = pool.submit(abs, -1)
    pool.flush()
    victims(workers.client).kill(victims(workers.client).host(pool))
    eventually(lambda: workers.client.run_on_scheduler(epoch, "looked-for") < 0)
    with pytest.raises(TimeoutError):
        pool.join(timeout=0.3)
    theirs.shutdown(wait=False)
    assert isinstance(future.exception(LIMIT), QueueLost)


@pytest.mark.parametrize(("before", "after"), [(1, 1), (3, 2), (2, 3)])
def test_made_again_at_once(client: Client, before: int, after: int, eventually: Callable[..., Any]) -> None:
    """Under epochs that are lower, with fewer queues, or more: the workers serve the new one."""
    with QueuePool(client, before, name="again") as pool, ConsumerPool(client, pool):
        assert list(pool.map(abs, range(-10, 0))) == list(range(10, 0, -1))
        client.run_on_scheduler(move, "again")
        eventually(lambda: client.run_on_scheduler(epoch, "again") > 0)
        assert list(pool.map(abs, range(-10, 0))) == list(range(10, 0, -1))
    with QueuePool(client, after, name="again") as pool, ConsumerPool(client, pool):
        futures = [pool.submit(abs, -n) for n in range(50)]
        assert [future.result(LIMIT) for future in futures] == list(range(50))


@pytest.mark.parametrize("moved", [False, True])
def test_made_again_behind_the_back_of_a_client(
    client: Client, cluster: Any, moved: bool, new_client: Callable[..., Client], eventually: Callable[..., Any]
) -> None:
    """Its event loop hangs meanwhile: its tasks end with their pool, and do not appear in the other one."""
    stalled = new_client(cluster.scheduler_address)
    pool = QueuePool(stalled, name="behind")
    future = pool.submit(abs, -1)
    pool.flush()
    if moved:
        client.run_on_scheduler(move, "behind")
        eventually(lambda: client.run_on_scheduler(epoch, "behind") > 0)
        pool.stats()
    go_on = threading.Event()
    assert stalled.loop.asyncio_loop is not client.loop.asyncio_loop
    stalled.loop.asyncio_loop.call_soon_threadsafe(go_on.wait, LIMIT)
    QueuePool.attach(client, "behind").shutdown()
    with QueuePool(client, name="behind") as another:
        go_on.set()
        assert isinstance(future.exception(LIMIT), QueueLost)
        assert another.stats()[0].puts == 0
        assert QueuePool.attach(stalled, "behind").stats()[0].puts == 0


def test_shut_down_late(client: Client, cluster: Any, new_client: Callable[..., Client]) -> None:
    """By a client that has not heard that its pool is over, and another has its name."""
    stalled = new_client(cluster.scheduler_address)
    pool = QueuePool(stalled, name="late")
    go_on = threading.Event()
    stalled.loop.asyncio_loop.call_soon_threadsafe(go_on.wait, LIMIT)
    QueuePool.attach(client, "late").shutdown()
    with QueuePool(client, name="late") as another, ThreadPoolExecutor(1) as thread:
        ending = thread.submit(pool.shutdown, cancel_futures=True)
        go_on.set()
        ending.result(LIMIT)
        assert QueuePool.attach(stalled, "late").stats()[0].uuid == another.stats()[0].uuid
        with pytest.raises(PoolClosed):
            ConsumerPool(stalled, pool).start()


def test_a_client_that_joins_ends_it_for_nobody(
    new_cluster: Callable[..., Any], new_client: Callable[..., Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A durable queue is being opened again, and the first try met a lock that is still fresh, when another joins."""
    from daskqueue.worker import queue_host

    honest, refusals, came = queue_host.open_durable, [0], threading.Event()

    async def refuse(path: Any, *args: Any, **options: Any) -> Any:
        if refusals[0] > 0:
            refusals[0] -= 1
            came.set()
            await asyncio.sleep(0)
            raise LockedError(str(path), "its last writer is lost")
        return await honest(path, *args, **options)

    def fail(name: str, dask_scheduler: Any) -> None:
        plugin = dask_scheduler.plugins["daskqueue"]
        place = plugin.directory.pools[name].places[0]
        plugin._orders.carry_out(plugin.directory.host_failed(name, place.uuid, place.epoch, ("WriterFailedError", "")))

    cluster, client = new_cluster(n_workers=2, processes=False)
    monkeypatch.setattr(queue_host, "open_durable", refuse)
    pool = QueuePool(client, durability="durable", dirpath=str(tmp_path / "pool"))
    future = pool.submit(abs, -1)
    pool.flush()
    refusals[0] = 2
    client.run_on_scheduler(fail, pool.name)
    assert came.wait(LIMIT)
    other = QueuePool(new_client(cluster), durability="durable", dirpath=str(tmp_path / "pool"))
    assert other.name == pool.name
    ConsumerPool(client, pool).start()
    assert future.result(LIMIT) == 1
    pool.shutdown()


@pytest.mark.parametrize("name", [None, "another"])
def test_a_durable_pool_opened_again_at_once(
    new_cluster: Callable[..., Any],
    tmp_path: Path,
    oracle: Any,
    gate: Any,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., Any],
    name: str | None,
) -> None:
    """Before the workers have forgotten it, under the same name or another: what runs then runs once."""
    from daskqueue.worker.plugin import DaskQueueWorker

    honest, beats, go_on = DaskQueueWorker._beat_once, [0], threading.Event()

    def beat(plugin: DaskQueueWorker) -> None:
        if go_on.is_set():  # till then nothing is forgotten
            honest(plugin)
            beats[0] += 1

    monkeypatch.setattr(DaskQueueWorker, "_beat_once", beat)

    def task(n: int) -> int:
        oracle.mark(n)
        return int(gate(n))

    options: dict[str, Any] = {"durability": "durable", "dirpath": str(tmp_path / "pool")}
    _, client = new_cluster(n_workers=1, threads_per_worker=2, processes=False)
    with QueuePool(client, **options) as pool:
        ConsumerPool(client, pool).start()
        assert pool.submit(abs, -1).result(LIMIT) == 1
    with QueuePool(client, name=name, **options) as pool:
        ConsumerPool(client, pool, concurrency=8).start()
        futures = [pool.submit(task, n) for n in range(2)]
        eventually(lambda: gate.count("came") == 2)
        go_on.set()
        eventually(lambda: beats[0] >= 2)
        futures.append(pool.submit(task, 2))
        eventually(lambda: gate.count("came") == 3)
        before = beats[0]
        eventually(lambda: beats[0] >= before + 3)
        gate.open()
        assert [future.result(LIMIT) for future in futures] == [0, 1, 2]
    assert oracle.counts() == {"0": 1, "1": 1, "2": 1}
