"""Workers die, are restarted, or all go: nothing hangs, and only what must runs again.

A file outside of everything counts executions.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import pytest

from daskqueue import ConsumerBaseClass, ConsumerPool, PoolClosed, QueueLost, QueuePool, WorkerCrashed

LIMIT = 60


def recorded(
    oracle: Any, seconds: float = 0.0, gate: Any = None, holds: Callable[[int], bool] = lambda n: True
) -> Callable[[int], int]:
    """A task that writes down when and where it began and ended; at a gate it waits if `holds` says so."""

    def task(n: int) -> int:
        oracle.mark(f"{n} + {os.getpid()} {time.time()}")
        threading.Event().wait(seconds)
        if gate is not None and holds(n):
            gate(n)
        oracle.mark(f"{n} - {os.getpid()} {time.time()}")
        return n

    return task


class Record:
    """What an oracle of `recorded` tasks says."""

    def __init__(self, oracle: Any) -> None:
        self.began: dict[int, list[tuple[int, float]]] = {}
        self.ended: dict[int, list[tuple[int, float]]] = {}
        for line in oracle.lines():
            n, what, pid, at = line.split()
            (self.began if what == "+" else self.ended).setdefault(int(n), []).append((int(pid), float(at)))

    @property
    def again(self) -> set[int]:
        """Tasks that began more than once."""
        return {n for n, runs in self.began.items() if len(runs) > 1}

    def unfinished(self, pid: int) -> set[int]:
        """Tasks that began on process `pid` and did not end there."""
        return {
            n
            for n, runs in self.began.items()
            if pid in dict(runs) and pid not in dict(self.ended.get(n, []))
        }  # fmt: skip

    def ended_before(self, at: float) -> set[int]:
        """Tasks that had ended at that time."""
        return {n for n, runs in self.ended.items() if min(when for _, when in runs) < at}


def holds_of(uuid: str, dask_worker: Any) -> bool:
    """Whether a worker holds leases of a life of a queue."""
    return uuid in dask_worker.plugins["daskqueue"].books


def started(client: Any, consumer_options: dict[str, Any] | None = None, **options: Any) -> QueuePool:
    """A pool and its consumers."""
    pool = QueuePool(client, **options)
    ConsumerPool(client, pool, **(consumer_options or {})).start()
    return pool


# ------------------------------------------------------------------------------------------ W8: 30 tasks


def test_w8_consumers_worker_killed(
    new_workers: Callable[..., Any], victims: Any, oracle: Any, gate: Any, eventually: Callable[..., Any]
) -> None:
    """All 30 are done; only what ran on the dead worker runs again, and soon."""
    client = new_workers(3).client
    pool = started(client)
    victim = victims(client)
    pid = victim.pids()[victim.others(pool)[0]]

    def is_second_there(n: int) -> bool:
        return os.getpid() == pid and any(f" - {pid} " in line for line in oracle.lines())

    futures = [pool.submit(recorded(oracle, 0.05, gate, is_second_there), n) for n in range(30)]
    eventually(lambda: gate.count("came") == 1)
    eventually(lambda: all(futures[n].done() for n, runs in Record(oracle).ended.items() if runs[0][0] == pid))
    os.kill(pid, signal.SIGKILL)
    killed_at = time.time()
    assert [future.result(LIMIT) for future in futures] == list(range(30))
    record = Record(oracle)
    assert record.again == record.unfinished(pid)
    assert len(record.again) == 1, "one ran there when it was killed"
    for n in record.again:
        assert record.began[n][-1][1] - killed_at < 10
    pool.join(timeout=LIMIT)
    pool.shutdown()


def test_w8_queues_host_killed(
    new_workers: Callable[..., Any], victims: Any, oracle: Any, gate: Any, eventually: Callable[..., Any]
) -> None:
    """The client puts the unfinished again; what it knows to be finished does not run again."""
    client = new_workers(3).client
    pool = started(client)
    futures = [pool.submit(recorded(oracle, 0.05, gate, lambda n: n >= 9), n) for n in range(30)]
    eventually(lambda: gate.count("came") == 3 and all(future.done() for future in futures[:9]))
    running = set(Record(oracle).began) - set(range(9))
    victim, lost = victims(client), pool.stats()[0].uuid
    others = victim.others(pool)
    pid = victim.kill(victim.host(pool))
    killed_at = time.time()
    # else they go on with what they have leased
    eventually(lambda: not any(client.run(holds_of, lost, workers=others).values()))
    gate.open()
    assert [future.result(LIMIT) for future in futures] == list(range(30))
    record = Record(oracle)
    assert len(running) == 3
    assert record.again <= running
    assert min(at for runs in record.began.values() for _, at in runs if at > killed_at) - killed_at < 10
    assert all(at < killed_at + 0.1 for runs in record.began.values() for of, at in runs if of == pid)
    pool.join(timeout=LIMIT)
    assert list(pool.results().values()) == list(range(30)), "what was collected can be read although its queue is gone"
    pool.shutdown()


# ---------------------------------------------------------------------------------------------- the queue's host


def test_host_killed_while_the_pool_shuts_down(
    new_workers: Callable[..., Any], victims: Any, eventually: Callable[..., Any], monkeypatch: Any
) -> None:
    """It still waits for its work: a new life of the queue, into which nothing was put again yet, has nothing to do."""
    monkeypatch.setattr("daskqueue.client.finishing.LOOK_S", 0.0)
    client = new_workers(3).client
    pool = started(client)
    victim = victims(client)
    futures = [pool.submit(time.sleep, 0.01) for _ in range(200)]
    eventually(lambda: futures[10].done())
    ending = threading.Thread(target=pool.shutdown)
    ending.start()
    victim.kill(victim.host(pool))
    ending.join(LIMIT)
    assert not ending.is_alive()
    assert [future.result(0) for future in futures] == [None] * 200


def test_queue_lost_with_fail(
    new_workers: Callable[..., Any], victims: Any, oracle: Any, gate: Any, eventually: Callable[..., Any]
) -> None:
    """on_queue_lost="fail": QueueLost for the unfinished, values for the others, and the pool goes on."""
    client = new_workers(2).client
    pool = started(client, on_queue_lost="fail")
    task = recorded(oracle, 0.0, gate, lambda n: n >= 6)
    futures = [pool.submit(task, n) for n in range(100)]
    batch = pool.submit_many(task, range(100, 200))
    eventually(lambda: all(future.done() for future in futures[:6]))
    victims(client).kill(victims(client).host(pool))
    gate.open()
    assert wait(futures, LIMIT).not_done == set()
    failed = {n for n, future in enumerate(futures) if future.exception() is not None}
    assert failed == set(range(6, 100))
    assert all(isinstance(futures[n].exception(), QueueLost) for n in failed)
    assert [future.result() for future in futures[:6]] == list(range(6))
    assert {type(error) for error in batch.failures(LIMIT).values()} == {QueueLost}
    assert pool.submit(abs, -1).result(LIMIT) == 1
    pool.join(timeout=LIMIT)
    assert not Record(oracle).again
    pool.shutdown()


class Slow(ConsumerBaseClass):
    """Takes one item in a while."""

    def process_item(self, item: Any) -> None:
        """Work."""
        threading.Event().wait(0.05)


def test_lost_items_are_reported_once(new_workers: Callable[..., Any], victims: Any) -> None:
    """Items of `put` are gone with their queue: the next join says how many, the one after is clean."""
    client = new_workers(2).client
    pool = QueuePool(client)
    pool.put_many(range(50))
    host = victims(client).host(pool)
    victims(client).kill(host)
    ConsumerPool(client, pool, Slow).start()
    with pytest.raises(QueueLost, match="50 items"):
        pool.join(timeout=LIMIT)
    pool.join(timeout=LIMIT)
    pool.put(1)
    pool.join(timeout=LIMIT)
    pool.shutdown()


@pytest.mark.slow
def test_two_queues_and_one_lost(new_workers: Callable[..., Any], victims: Any, oracle: Any) -> None:
    """The other queue goes on; all is done; two clients and a batch."""
    workers = new_workers(3)
    client = workers.client
    pool = started(client, n_queues=2)
    futures = [pool.submit(recorded(oracle, 0.01), n) for n in range(200)]
    batch = pool.batch_submit([(recorded(oracle, 0.01), n) for n in range(200, 400)], batch_size=10)
    victims(client).kill(victims(client).host(pool, 1))
    assert [future.result(LIMIT) for future in futures] == list(range(200))
    assert batch.results(LIMIT) == list(range(200, 400))
    pool.join(timeout=LIMIT)
    assert list(pool.results().values()) == list(range(400))
    pool.shutdown()


@pytest.mark.slow
def test_no_worker_can_host(
    new_cluster: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any]
) -> None:
    """They are asked again, but not all the time; when one can, the pool is there."""

    def break_(dask_worker: Any) -> None:
        host = dask_worker.plugins["daskqueue"].host
        host.open_, host.open = host.open, None

    def mend(dask_worker: Any) -> None:
        host = dask_worker.plugins["daskqueue"].host
        host.open = host.open_

    cluster, client = new_cluster()
    QueuePool(client).shutdown()  # installs the plugins
    directory = cluster.scheduler.plugins["daskqueue"].directory
    honest, failures = directory.host_failed, []

    def host_failed(*order: Any) -> Any:
        failures.append(time.monotonic())
        return honest(*order)

    monkeypatch.setattr(directory, "host_failed", host_failed)
    client.run(break_)
    with ThreadPoolExecutor(1) as thread:
        opening = thread.submit(lambda: started(client))
        eventually(lambda: len(failures) == 4)
        assert failures[3] - failures[0] > 1.4, "half a second between two"
        client.run(mend)
        pool = opening.result(LIMIT)
        assert pool.submit(abs, -1).result(LIMIT) == 1
        pool.shutdown()


# ------------------------------------------------------------------------------------------------------ early ack


def test_early_ack_consumer_killed(
    new_workers: Callable[..., Any], victims: Any, oracle: Any, gate: Any, eventually: Callable[..., Any]
) -> None:
    """What was delivered to the dead worker ends with WorkerCrashed and runs nowhere else."""
    client = new_workers(2).client
    pool = started(client, {"early_ack": True, "batch_size": 1})
    victim = victims(client)
    pid = victim.pids()[victim.others(pool)[0]]
    futures = [pool.submit(recorded(oracle, 0.02, gate, lambda n: os.getpid() == pid), n) for n in range(20)]
    eventually(lambda: gate.count("came") == 1)
    os.kill(pid, signal.SIGKILL)
    assert wait(futures, LIMIT).not_done == set()
    record = Record(oracle)
    crashed = {n for n, future in enumerate(futures) if isinstance(future.exception(), WorkerCrashed)}
    assert record.unfinished(pid) <= crashed
    assert 1 <= len(crashed) <= 3
    assert not record.again
    assert all(futures[n].result() == n for n in set(range(20)) - crashed)
    assert "early_ack" in str(futures[min(crashed)].exception())
    pool.join(timeout=LIMIT)
    pool.shutdown()


def test_early_ack_host_killed(
    new_workers: Callable[..., Any], victims: Any, oracle: Any, gate: Any, eventually: Callable[..., Any]
) -> None:
    """What may have run is not put again: it ends with QueueLost."""
    client = new_workers(2).client
    pool = started(client, {"early_ack": True})
    futures = [pool.submit(recorded(oracle, 0.0, gate, lambda n: n >= 4), n) for n in range(50)]
    eventually(lambda: gate.count("came") == 2 and futures[3].done())
    victims(client).kill(victims(client).host(pool))
    gate.open()
    assert wait(futures, LIMIT).not_done == set()
    ended = {type(future.exception()) for future in futures}
    assert ended == {type(None), QueueLost}
    assert not Record(oracle).again
    pool.shutdown()


# -------------------------------------------------------------------------------------------------- all of them


def pids(cluster: Any) -> list[int]:
    """Process ids of a cluster's workers, as their nannies know them."""
    return [nanny.pid for nanny in cluster.workers.values() if nanny.pid]


def kill(pid: int) -> None:
    """SIGKILL, if it is not gone already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def test_all_workers_killed(
    new_cluster: Callable[..., Any], oracle: Any, gate: Any, eventually: Callable[..., Any]
) -> None:
    """Their nannies bring them back, and all is done."""
    cluster, client = new_cluster()
    pool = started(client)
    futures = [pool.submit(recorded(oracle, 0.0, gate, lambda n: n >= 30), n) for n in range(60)]
    eventually(lambda: gate.count("came") == 2 and futures[3].done())
    for pid in pids(cluster):
        kill(pid)
    gate.open()
    assert [future.result(LIMIT) for future in futures] == list(range(60))
    pool.join(timeout=LIMIT)
    pool.shutdown()


def test_client_restart(new_cluster: Callable[..., Any], oracle: Any, eventually: Callable[..., Any]) -> None:
    """client.restart() with a live pool: new processes, all is done."""
    _, client = new_cluster()
    pool = started(client, n_queues=2)
    futures = [pool.submit(recorded(oracle, 0.02), n) for n in range(60)]
    eventually(lambda: futures[3].done(), LIMIT)
    client.restart()
    assert [future.result(LIMIT) for future in futures] == list(range(60))
    assert pool.submit(abs, -1).result(LIMIT) == 1
    pool.join(timeout=LIMIT)
    pool.shutdown()


def test_cluster_closed(new_cluster: Callable[..., Any], oracle: Any, eventually: Callable[..., Any]) -> None:
    """Pending futures end with QueueLost within seconds, and every call says what happened."""
    cluster, client = new_cluster()
    pool = started(client)
    futures = [pool.submit(recorded(oracle, 0.3), n) for n in range(500)]
    eventually(lambda: oracle.lines(), LIMIT)
    cluster.close()
    began = time.monotonic()
    assert wait(futures, LIMIT).not_done == set()
    assert {type(future.exception()) for future in futures} <= {QueueLost, type(None)}
    assert isinstance(futures[-1].exception(), QueueLost)
    with pytest.raises(RuntimeError):
        pool.submit(abs, 1).result(LIMIT)
    with pytest.raises(RuntimeError):
        pool.join(timeout=LIMIT)
    assert time.monotonic() - began < 40
    pool.shutdown()


@pytest.mark.filterwarnings("error")
def test_after_the_end(new_cluster: Callable[..., Any], eventually: Callable[..., Any]) -> None:
    """The client's event loop has gone with the client: each call says so at once."""
    cluster, client = new_cluster(n_workers=1)
    pool = started(client)
    assert pool.submit(abs, -1).result(LIMIT) == 1
    loop = client.loop.asyncio_loop
    client.close()
    cluster.close()
    eventually(loop.is_closed)
    for call in (partial(pool.submit, abs, 1), pool.join, pool.stats, pool.health, pool.results, pool.flush):
        with pytest.raises(PoolClosed, match=r"client .*was closed"):
            call()
    pool.shutdown()


@pytest.mark.slow
def test_random_kills(new_cluster: Callable[..., Any], oracle: Any, eventually: Callable[..., Any]) -> None:
    """Workers die at random while 3,000 tasks run: every future ends with its value, and each was executed."""
    cluster, client = new_cluster()
    pool = started(client, n_queues=2)

    def task(n: int) -> int:
        oracle.mark(n)
        threading.Event().wait(0.003)
        return -n

    chance = random.Random(3)
    over = threading.Event()
    killed = 0

    def feed() -> None:
        for n in range(1000):
            futures.append(pool.submit(task, n))
            over.wait(0.008)

    futures: list[Any] = []
    feeder = threading.Thread(target=feed)
    feeder.start()
    batch = pool.batch_submit([(task, n) for n in range(1000, 2000)], batch_size=20)
    values = pool.map(task, range(2000, 3000), timeout=90)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        over.wait(chance.uniform(0.3, 2.5))
        alive = pids(cluster)
        if alive:
            kill(chance.choice(alive))
            killed += 1
    feeder.join(LIMIT)
    assert [future.result(60) for future in futures] == [-n for n in range(1000)]
    assert batch.results(60) == [-n for n in range(1000, 2000)]
    assert list(values) == [-n for n in range(2000, 3000)]
    pool.join(timeout=LIMIT)
    assert killed >= 5
    assert set(oracle.counts()) == set(map(str, range(3000)))
    pool.shutdown()
