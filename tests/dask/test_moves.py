"""Workers leave in peace, and their queues go on elsewhere: nothing is lost, and nothing runs twice.

A file outside of everything counts executions. Where a queue is caught on its way, it waits at a gate: the old host has
frozen it and not yet handed it over.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from daskqueue import ConsumerBaseClass, ConsumerPool, QueuePool
from daskqueue.testing import ProcessCluster

LIMIT = 60


def marked(oracle: Any, seconds: float = 0.001, gate: Any = None) -> Callable[[int], int]:
    """A task that writes down that it ran, and for -1 waits at the gate."""

    def task(n: int) -> int:
        oracle.mark(n)
        if n < 0:
            gate(n)
        else:
            threading.Event().wait(seconds)
        return n * 10

    return task


def started(client: Client, **options: Any) -> QueuePool:
    """A pool, and one consumer on each worker."""
    pool = QueuePool(client, **options)
    ConsumerPool(client, pool).start()
    return pool


def once(oracle: Any, count: int) -> bool:
    """Whether each of so many tasks ran exactly once."""
    return bool(oracle.counts() == {str(n): 1 for n in range(count)})


def place(client: Client, pool: QueuePool, index: int = 0) -> tuple[str, str, int]:
    """Where a queue is: uuid, address, epoch."""

    def look(name: str, index: int, dask_scheduler: Any) -> tuple[Any, ...]:
        return tuple(dask_scheduler.plugins["daskqueue"].directory.pools[name].places[index][:3])

    uuid, address, epoch = client.run_on_scheduler(look, pool.name, index)
    return str(uuid), str(address), int(epoch)


def hold_moves(gate: Any) -> Callable[[], None]:
    """To run on a worker: whatever leaves it waits at the gate, and it has the time."""

    def hold() -> None:
        from daskqueue.worker import departures, plugin

        honest = departures.pack

        def pack(queue: Any) -> bytes:
            gate("queue")
            return honest(queue)

        departures.pack = pack  # type: ignore[attr-defined]
        plugin.TEARDOWN_S = plugin.RETIRED_S = 60.0  # type: ignore[misc]

    return hold


# ------------------------------------------------------------------------------------------- Dask's ways to end workers


def test_retired_in_mid_work(new_workers: Callable[..., Any], victims: Any, oracle: Any) -> None:
    """Thousands of tasks, singles and a batch, of two queues: both hosts are retired, one after the other."""
    client = new_workers(3).client
    pool = started(client, n_queues=2)
    before = [place(client, pool, index) for index in range(2)]
    futures = [pool.submit(marked(oracle), n) for n in range(1000)]
    batch = pool.submit_many(marked(oracle), range(1000, 2500))
    for index in range(2):
        futures[300 * (index + 1)].result(LIMIT)
        client.retire_workers([place(client, pool, index)[1]])
    assert [future.result(LIMIT) for future in futures] == [n * 10 for n in range(1000)]
    assert batch.results(LIMIT) == [n * 10 for n in range(1000, 2500)]
    pool.join(timeout=LIMIT)
    assert once(oracle, 2500)
    after = [place(client, pool, index) for index in range(2)]
    assert [uuid for uuid, *_ in after] == [uuid for uuid, *_ in before]
    assert len({address for _, address, _ in after}) == 1
    assert list(pool.results().values()) == [n * 10 for n in range(1000)]
    pool.shutdown()


def test_what_runs_is_waited_for(
    new_workers: Callable[..., Any], oracle: Any, gate: Any, eventually: Callable[..., Any]
) -> None:
    """A task runs on a host that is retired: the queue goes first, and hears of the task's end elsewhere."""
    workers = new_workers(1)
    client = workers.client
    pool = started(client)
    uuid, host, _ = place(client, pool)
    future = pool.submit(marked(oracle, gate=gate), -1)
    eventually(lambda: gate.count("came"))
    workers.add(1)
    client.retire_workers([host])
    eventually(lambda: place(client, pool)[1] != host)
    assert pool.submit(abs, -5).result(LIMIT) == 5
    stats = pool.stats()[0]
    assert (stats.uuid, stats.delivered) == (uuid, 1)
    gate.open()
    assert future.result(LIMIT) == -10
    assert oracle.counts() == {"-1": 1}
    pool.shutdown()


def test_scaled_down(new_cluster: Callable[..., Any], oracle: Any) -> None:
    """`cluster.scale`, with a queue on each of two workers; one goes, and it is not retired."""
    cluster, client = new_cluster(n_workers=2)
    pool = started(client, n_queues=2)
    uuids = {place(client, pool, index)[0] for index in range(2)}
    futures = [pool.submit(marked(oracle), n) for n in range(1000)]
    futures[100].result(LIMIT)
    cluster.scale(1)
    assert [future.result(LIMIT) for future in futures] == [n * 10 for n in range(1000)]
    assert once(oracle, 1000)
    pool.join(timeout=LIMIT)
    assert {place(client, pool, index)[0] for index in range(2)} == uuids
    pool.shutdown()


@pytest.mark.slow
def test_adapted_down(new_cluster: Callable[..., Any], oracle: Any, eventually: Callable[..., Any]) -> None:
    """`cluster.adapt` takes one of two workers away."""
    cluster, client = new_cluster(n_workers=2)
    pool = started(client, n_queues=2)
    uuids = {place(client, pool, index)[0] for index in range(2)}
    futures = [pool.submit(marked(oracle), n) for n in range(3000)]
    futures[100].result(LIMIT)
    cluster.adapt(minimum=1, maximum=1, interval="50ms", wait_count=1)
    assert [future.result(LIMIT) for future in futures] == [n * 10 for n in range(3000)]
    eventually(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 1)
    assert once(oracle, 3000)
    pool.join(timeout=LIMIT)
    assert {place(client, pool, index)[0] for index in range(2)} == uuids
    pool.shutdown()


@pytest.mark.slow
def test_restarted(new_cluster: Callable[..., Any], oracle: Any) -> None:
    """`client.restart_workers` of the host: its queue is elsewhere by then."""
    _, client = new_cluster(n_workers=2)
    pool = started(client)
    uuid, host, _ = place(client, pool)
    futures = [pool.submit(marked(oracle), n) for n in range(1000)]
    futures[100].result(LIMIT)
    client.restart_workers([host])
    assert [future.result(LIMIT) for future in futures] == [n * 10 for n in range(1000)]
    assert once(oracle, 1000)
    assert place(client, pool)[0] == uuid
    pool.shutdown()


@pytest.mark.slow
def test_all_restarted(new_cluster: Callable[..., Any], oracle: Any) -> None:
    """`client.restart`: nobody stays to take a queue over, so it is lost, and nothing hangs."""
    _, client = new_cluster(n_workers=2)
    pool = started(client, n_queues=2)
    futures = [pool.submit(marked(oracle), n) for n in range(1000)]
    futures[100].result(LIMIT)
    client.restart()
    assert [future.result(LIMIT) for future in futures] == [n * 10 for n in range(1000)]
    pool.join(timeout=LIMIT)
    pool.shutdown()


@pytest.mark.slow
def test_terminated(oracle: Any, tmp_path: Path) -> None:
    """SIGTERM to the nanny of the host, as batch systems do."""
    with ProcessCluster(2, nanny=True, folder=tmp_path / "cluster") as cluster:
        pool = started(cluster.client)
        [host] = cluster.find("host", pool)
        uuid = place(cluster.client, pool)[0]
        futures = [pool.submit(marked(oracle), n) for n in range(1000)]
        futures[100].result(LIMIT)
        host.terminate()
        assert [future.result(LIMIT) for future in futures] == [n * 10 for n in range(1000)]
        assert once(oracle, 1000)
        assert place(cluster.client, pool)[0] == uuid
        assert host.wait(LIMIT) is not None
        pool.shutdown()


# ------------------------------------------------------------------------------------------------------ what goes along


class Recorder(ConsumerBaseClass):
    """Takes items, one after the other."""

    def process_item(self, item: Any) -> None:
        """Write it down."""
        oracle, what = item
        oracle.mark(what)


def fail(n: int) -> int:
    """A task that fails."""
    raise LookupError(n)


def test_what_a_queue_holds(
    new_workers: Callable[..., Any], new_client: Callable[..., Client], oracle: Any, eventually: Callable[..., Any]
) -> None:
    """Kept results, dead letters, keys, what waits for its time, priorities, items and followers."""
    workers = new_workers(2)
    client = workers.client
    pool = QueuePool(client, name="moving")
    consumers = ConsumerPool(client, pool)
    consumers.start()
    kept = [pool.submit(abs, -n) for n in range(50)]
    assert [future.result(LIMIT) for future in kept] == list(range(50))
    failed = pool.submit(fail, 1)
    assert isinstance(failed.exception(LIMIT), LookupError)
    large = pool.options(key="large").submit(bytes, 9 << 20)
    assert len(large.result(LIMIT)) == 9 << 20
    consumers.drain()
    later = pool.options(delay=1.0).submit(marked(oracle), 0)
    keyed = pool.options(key="mine").submit(marked(oracle), 1)
    low, high = (pool.options(priority=priority).submit(oracle.mark, priority) for priority in (-7, 7))
    pool.put((oracle, "item"))
    elsewhere = QueuePool(new_client(workers.cluster), name="moving")
    follower = elsewhere.get_future("mine")
    pool.flush()
    uuid, host, epoch = place(client, pool)

    client.retire_workers([host])
    eventually(lambda: place(client, pool)[1] != host)
    assert place(client, pool)[::2] == (uuid, epoch + 1)
    stats = pool.stats()[0]
    assert (stats.ready, stats.scheduled, stats.failed, stats.finished) == (4, 1, 1, 52)
    assert pool.options(key="mine").submit(marked(oracle), 2).key == "mine"
    assert [letter.error_type for letter in elsewhere.dead_letters()] == ["LookupError"]
    assert list(elsewhere.results())[:-1] == [future.key for future in kept]
    assert len(elsewhere.get_future("large").result(LIMIT)) == 9 << 20
    ConsumerPool(client, pool, n_consumers=1).start()
    ConsumerPool(client, pool, Recorder, n_consumers=1).start()
    assert [future.result(LIMIT) for future in (later, keyed, follower, low, high)] == [0, 10, 10, None, None]
    assert pool.requeue([failed.key]) == 1
    pool.join(timeout=LIMIT)
    lines = oracle.lines()
    assert sorted(lines) == ["-7", "0", "1", "7", "item"]
    assert lines.index("7") < lines.index("1") < lines.index("-7")
    pool.shutdown()


def test_join(new_workers: Callable[..., Any], oracle: Any, gate: Any, eventually: Callable[..., Any]) -> None:
    """It waits on at the new host, until what ran meanwhile is done."""
    client = new_workers(3).client
    pool = started(client)
    _, host, _ = place(client, pool)
    future = pool.submit(marked(oracle, gate=gate), -1)
    eventually(lambda: gate.count("came"))
    with ThreadPoolExecutor(1) as thread:
        joining = thread.submit(pool.join, timeout=LIMIT)
        client.retire_workers([host])
        eventually(lambda: place(client, pool)[1] != host)
        assert not joining.done()
        gate.open()
        joining.result(LIMIT)
    assert future.done()
    assert oracle.counts() == {"-1": 1}
    pool.shutdown()


# ------------------------------------------------------------------------------------------ 13 and 14: on the way


def caught(workers: Any, gate: Any, oracle: Any, new_gate: Callable[[], Any]) -> tuple[Any, ...]:
    """A pool whose host leaves, and a task that runs on another worker: until `gate` opens, the queue is nowhere."""
    client = workers.client
    pool = QueuePool(client)
    uuid, host, _ = place(client, pool)
    others = [address for address in client.scheduler_info(n_workers=-1)["workers"] if address != host]
    busy = new_gate()
    ConsumerPool(client, pool).start()
    running = [pool.submit(marked(oracle, gate=busy), -1 - n) for n in range(len(others) + 1)]
    client.run(hold_moves(gate), workers=[host])
    return client, pool, uuid, host, others, busy, running


def test_all_is_in_flight(
    new_workers: Callable[..., Any], new_gate: Callable[[], Any], oracle: Any, eventually: Callable[..., Any]
) -> None:
    """13: while a queue is on its way it is asked for everything; it is done at the new host, once."""
    gate, workers = new_gate(), new_workers(3)
    client, pool, uuid, host, _, busy, running = caught(workers, gate, oracle, new_gate)
    eventually(lambda: busy.count("came") == 3)
    queued = [pool.submit(marked(oracle), n) for n in range(500)]
    pool.flush()
    client.retire_workers([host])
    eventually(lambda: gate.count("came") == 1)
    with ThreadPoolExecutor(2) as threads:
        joining, asking = threads.submit(pool.join, timeout=LIMIT), threads.submit(pool.stats)
        late = [pool.submit(marked(oracle), n) for n in range(500, 1000)]
        busy.open()
        eventually(lambda: busy.count("left") == 3)
        cancelled = late[-1].cancel()
        gate.open()
        assert [future.result(LIMIT) for future in running] == [-10, -20, -30]
        assert [future.result(LIMIT) for future in (queued + late)[:-1]] == [n * 10 for n in range(999)]
        joining.result(LIMIT)
        assert [stats.uuid for stats in asking.result(LIMIT)] == [uuid]
    counts = oracle.counts()
    assert set(counts.values()) == {1}
    assert cancelled == ("999" not in counts)
    assert place(client, pool)[0] == uuid
    pool.shutdown()


def test_the_old_host_dies_before_the_switch(
    new_workers: Callable[..., Any], new_gate: Callable[[], Any], oracle: Any, eventually: Callable[..., Any]
) -> None:
    """14: the queue is lost with it, as far as anybody knows: another life, and the client puts again."""
    gate, workers = new_gate(), new_workers(3)
    client, pool, uuid, host, _, busy, running = caught(workers, gate, oracle, new_gate)
    eventually(lambda: busy.count("came") == 3)
    queued = [pool.submit(marked(oracle), n) for n in range(300)]
    pool.flush()
    pid = client.run(os.getpid, workers=[host])[host]
    client.retire_workers([host])
    eventually(lambda: gate.count("came") == 1)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: place(client, pool)[0] != uuid)
    busy.open()
    assert [future.result(LIMIT) for future in running + queued] == [-10, -20, -30, *range(0, 3000, 10)]
    assert all(oracle.counts()[str(n)] == 1 for n in range(300))
    pool.join(timeout=LIMIT)
    pool.shutdown()


def test_the_old_host_dies_after_the_switch(
    new_workers: Callable[..., Any], new_gate: Callable[[], Any], oracle: Any, eventually: Callable[..., Any]
) -> None:
    """14: the queue is safe; only what ran on the old host runs again."""
    gate, workers = new_gate(), new_workers(3)
    gate.open()
    client, pool, uuid, host, others, busy, running = caught(workers, gate, oracle, new_gate)
    eventually(lambda: busy.count("came") == 3)
    queued = [pool.submit(marked(oracle), n) for n in range(300)]
    pool.flush()
    pid = client.run(os.getpid, workers=[host])[host]
    client.retire_workers([host])
    eventually(lambda: place(client, pool)[1] in others)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: pool.stats()[0].delivered == 2)
    busy.open()
    assert [future.result(LIMIT) for future in running + queued] == [-10, -20, -30, *range(0, 3000, 10)]
    counts = oracle.counts()
    assert sorted(counts[str(-1 - n)] for n in range(3)) == [1, 1, 2]
    assert all(counts[str(n)] == 1 for n in range(300))
    assert place(client, pool)[0] == uuid
    pool.shutdown()


def test_the_new_host_dies(
    new_workers: Callable[..., Any], new_gate: Callable[[], Any], oracle: Any, eventually: Callable[..., Any]
) -> None:
    """On the way to it: a third takes the queue over from where it was."""
    gate, workers = new_gate(), new_workers(4)
    client, pool, uuid, host, _, busy, running = caught(workers, gate, oracle, new_gate)
    eventually(lambda: busy.count("came") == 4)
    queued = [pool.submit(marked(oracle), n) for n in range(300)]
    pool.flush()
    pids = client.run(os.getpid)

    def heir(name: str, uuid: str, dask_scheduler: Any) -> str:
        return str(dask_scheduler.plugins["daskqueue"].directory.pools[name].moves[uuid].to)

    client.retire_workers([host])
    eventually(lambda: gate.count("came") == 1)
    os.kill(pids[client.run_on_scheduler(heir, pool.name, uuid)], signal.SIGKILL)
    gate.open()
    eventually(lambda: place(client, pool)[1] not in ("", host))
    busy.open()
    assert [future.result(LIMIT) for future in running + queued] == [-10, -20, -30, -40, *range(0, 3000, 10)]
    counts = oracle.counts()
    assert sorted(counts[str(-1 - n)] for n in range(4)) == [1, 1, 1, 2]
    assert all(counts[str(n)] == 1 for n in range(300))
    assert place(client, pool)[0] == uuid
    pool.shutdown()


# ------------------------------------------------------------------------------------------------------- durable pools


def test_a_durable_host_is_retired(new_workers: Callable[..., Any], oracle: Any) -> None:
    """It closes the queue, another opens it: nothing runs twice, and nothing had to be mended."""
    client = new_workers(3).client
    pool = started(client, durability="durable", dirpath=Path(oracle.path).parent / "pool")
    uuid, host, _ = place(client, pool)
    futures = [pool.submit(marked(oracle), n) for n in range(800)]
    futures[200].result(LIMIT)
    client.retire_workers([host])
    assert [future.result(LIMIT) for future in futures] == [n * 10 for n in range(800)]
    assert once(oracle, 800)
    pool.join(timeout=LIMIT)
    assert place(client, pool)[0] == uuid
    [found] = pool.recovery()
    assert found.clean
    assert found.waiting + found.running > 0
    pool.shutdown()


def test_a_durable_pool_scaled_to_nothing_and_back(
    new_cluster: Callable[..., Any], oracle: Any, eventually: Callable[..., Any]
) -> None:
    """Whoever is there serves it until all have reported; then it waits for a host, and the work goes on."""
    cluster, client = new_cluster(n_workers=3)
    pool = started(client, durability="durable", dirpath=Path(oracle.path).parent / "pool")
    uuid = place(client, pool)[0]
    futures = [pool.submit(marked(oracle), n) for n in range(800)]
    futures[100].result(LIMIT)
    cluster.scale(0)
    eventually(lambda: place(client, pool)[1] == "")
    cluster.scale(2)
    assert [future.result(LIMIT) for future in futures] == [n * 10 for n in range(800)]
    assert once(oracle, 800)
    pool.join(timeout=LIMIT)
    assert place(client, pool)[0] == uuid
    [found] = pool.recovery()
    assert found.whole
    pool.shutdown()
