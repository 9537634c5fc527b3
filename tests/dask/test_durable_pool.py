"""Durable pools: workers, hosts, clients and whole clusters go, and nothing is lost.

A file outside of everything counts executions.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from daskqueue import ConsumerPool, DamagedPayload, PoolExists, QueueExecutor, QueuePool, WorkerCrashed
from daskqueue_storage import AccessError, DurableQueue, LockedError, NotAQueue

LIMIT = 60


@pytest.fixture
def where(tmp_path: Path) -> Path:
    """The directory of a pool that is not there yet."""
    return tmp_path / "pool"


@pytest.fixture
def pool(client: Client, where: Path) -> Iterator[QueuePool]:
    """One on the shared cluster."""
    pool = QueuePool(client, durability="durable", dirpath=where)
    yield pool
    pool.shutdown(cancel_futures=True)


def marked(oracle: Any) -> Callable[[int], int]:
    """A task that writes down that it ran."""

    def task(n: int) -> int:
        oracle.mark(n)
        return n * 10

    return task


def cross(n: int) -> int:
    """A task that fails."""
    raise LookupError(n)


# ------------------------------------------------------------------------------------------------- as any other pool


def test_its_client_keeps_nothing(client: Client, pool: QueuePool) -> None:
    """What was collected is on the disk, and read from there, by key too; the last of a key counts."""
    ConsumerPool(client, pool).start()
    plain = pool.submit(bytes, 1000)
    keyed = [pool.options(key=f"k{n}").submit(abs, -n) for n in range(3)]
    assert [future.result(LIMIT) for future in [plain, *keyed]] == [bytes(1000), 0, 1, 2]
    assert pool.options(key="k1", on_duplicate="replace").submit(abs, -7).result(LIMIT) == 7
    memory = pool._connection.memory
    assert (memory._kept.nbytes, memory._keys, memory._numbers) == (0, {}, {})
    assert pool.results() == {plain.key: bytes(1000), "k0": 0, "k2": 2, "k1": 7}
    assert pool.results(["k1", "k2"]) == {"k1": 7, "k2": 2}
    assert pool.get_future("k2").result(LIMIT) == 2
    assert pool.forget(["k2"]) == 1
    assert "k2" not in pool.results()


def test_what_a_pool_does(client: Client, pool: QueuePool, where: Path) -> None:
    """Calls, batches, maps, items, failures, keys; and it is on disk."""
    ConsumerPool(client, pool).start()
    assert pool.submit(abs, -3).result(LIMIT) == 3
    assert list(pool.map(abs, range(-5000, 0))) == list(range(5000, 0, -1))
    assert pool.submit_many(abs, range(-100, 0)).results(LIMIT) == list(range(100, 0, -1))
    assert isinstance(pool.submit(cross, 1).exception(LIMIT), LookupError)
    keyed = pool.options(key="k").submit(abs, -7)
    assert keyed.result(LIMIT) == 7
    assert pool.options(key="k").submit(abs, -8).result(LIMIT) == 7, "there is one task of that key"
    assert pool.get_future("k").result(LIMIT) == 7
    pool.join(timeout=LIMIT)
    assert [letter.error_type for letter in pool.dead_letters()] == ["LookupError"]
    assert (where / "pool.json").exists()
    assert list((where / "q0" / "log").iterdir())


def test_delay_and_priority(client: Client, pool: QueuePool) -> None:
    """What waits for a time is run then."""
    ConsumerPool(client, pool).start()
    later = pool.options(delay=0.3).submit(abs, -1)
    urgent = pool.options(priority=5).submit(abs, -2)
    assert urgent.result(LIMIT) == 2
    assert later.result(LIMIT) == 1


@pytest.mark.parametrize("sync", ["none", 0.1])
def test_other_ways_to_sync(client: Client, where: Path, sync: Any) -> None:
    """They serve all the same."""
    with QueuePool(client, 2, durability="durable", dirpath=where, sync=sync) as pool, ConsumerPool(client, pool):
        assert list(pool.map(abs, range(-300, 0))) == list(range(300, 0, -1))


def test_two_objects_of_one_directory(client: Client, new_client: Callable[..., Client], pool: QueuePool) -> None:
    """The same pool, whoever names it, also from another client."""
    other = QueuePool(client, durability="durable", dirpath=pool._connection.options["dirpath"])
    assert other.name == pool.name
    elsewhere = new_client(client.scheduler.address)  # type: ignore[union-attr]
    third = QueuePool.resume(elsewhere, pool._connection.options["dirpath"])
    assert third.name == pool.name
    ConsumerPool(client, pool).start()
    assert third.submit(abs, -4).result(LIMIT) == 4


# ---------------------------------------------------------------------------------------------------------- two hosts


@pytest.mark.parametrize("shared", [True, False])
def test_a_directory_that_another_host_does_not_see(
    new_workers: Callable[..., Any],
    processes: Callable[..., Any],
    where: Path,
    shared: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whoever makes the pool is warned that its queues wait whenever the one host has no worker; it serves."""
    workers = new_workers(1)
    client = workers.client
    processes("dask_worker", workers.cluster.scheduler_address, "--host", "127.0.0.2")
    client.wait_for_workers(2, timeout=LIMIT)

    def local(dask_worker: Any) -> None:
        from daskqueue.worker import plugin

        honest = plugin.pool_in
        there = "127.0.0.1" in dask_worker.address
        plugin.pool_in = lambda *words: honest(*words) if there else None  # type: ignore[assignment]

    QueuePool(client).shutdown()  # that the workers know us
    if not shared:
        client.run(local)
    with caplog.at_level("WARNING"), QueuePool(client, durability="durable", dirpath=where) as pool:
        assert ConsumerPool(client, pool).start() is None
        assert pool.submit(abs, -1).result(LIMIT) == 1
    assert any("if it is local to its host" in each.message for each in caplog.records) is not shared


# --------------------------------------------------------------------------------------------------------- bad input


def test_a_directory_is_asked_for(client: Client, where: Path) -> None:
    """It is nobody's to guess, and of no use to a transient pool."""
    with pytest.raises(TypeError, match="dirpath"):
        QueuePool(client, durability="durable")
    with pytest.raises(ValueError, match="durability='durable'"):
        QueuePool(client, dirpath=where)
    with pytest.raises(TypeError, match="did you mean 'lock_ttl'"):
        QueuePool(client, durability="durable", dirpath=where, storage={"lock_tll": 3})
    with pytest.raises(ValueError, match="sync"):
        QueuePool(client, durability="durable", dirpath=where, sync="sometimes")
    assert not where.exists()


def test_nothing_to_resume(client: Client, where: Path) -> None:
    """It says where it looked, and makes nothing."""
    with pytest.raises(FileNotFoundError, match=str(where)):
        QueuePool.resume(client, where)
    assert not where.exists()


def test_a_file_is_in_the_way(client: Client, where: Path) -> None:
    """What the system refuses on a worker is an AccessError here, too, with path and advice."""
    where.write_text("")
    with pytest.raises(AccessError, match=str(where)) as caught:
        QueuePool(client, durability="durable", dirpath=where)
    assert isinstance(caught.value, OSError)


def test_another_number_of_queues(client: Client, pool: QueuePool, where: Path) -> None:
    """As many as it was made with; the error names the pool as `attach` does."""
    with pytest.raises(PoolExists, match="n_queues") as caught:
        QueuePool(client, 3, durability="durable", dirpath=where)
    assert QueuePool.attach(client, caught.value.name).name == pool.name
    with pytest.raises(PoolExists, match=f"{pool.name}.* name is"):
        QueuePool(client, name="other", durability="durable", dirpath=where)
    with pytest.raises(PoolExists, match="maxsize"):
        QueuePool(client, durability="durable", dirpath=where, maxsize=7)


def test_somebody_elses_directory(client: Client, where: Path) -> None:
    """Refused, and left as it is."""
    where.mkdir(mode=0o700)
    (where / "pool.json").write_text("[]")
    with pytest.raises(NotAQueue, match=r"pool\.json"):
        QueuePool(client, durability="durable", dirpath=where)


def test_another_cluster_has_it(new_cluster: Callable[..., Any], pool: QueuePool, where: Path) -> None:
    """One cluster at a time; the other is told who has it."""
    _, client = new_cluster(n_workers=1)
    with pytest.raises(LockedError, match="pid"):
        QueuePool.resume(client, where, storage={"lock_ttl": 1})


def test_a_lost_queue_directory(new_cluster: Callable[..., Any], where: Path) -> None:
    """A pool without one of its queues is not served with an empty one instead."""
    _, client = new_cluster(n_workers=2)
    QueuePool(client, 2, durability="durable", dirpath=where).shutdown()
    (where / "q1").rename(where / "moved away")
    with pytest.raises((NotAQueue, OSError), match="q1"):
        QueuePool.resume(client, where)
    assert not (where / "q1").exists()


def test_what_was_found_is_said(client: Client, where: Path, caplog: pytest.LogCaptureFixture) -> None:
    """To whoever opens the pool; aloud if something is damaged."""
    pool = QueuePool(client, durability="durable", dirpath=where)
    for n in range(3):
        pool.options(key=f"k{n}").put("x" * 50)
    pool.shutdown(wait=False)

    def said() -> list[tuple[str, str]]:
        records = [record for record in caplog.records if str(where) in record.getMessage()]
        return [(record.levelname, record.getMessage()) for record in records if "waiting" in record.getMessage()]

    with caplog.at_level(logging.INFO, logger="daskqueue"):
        QueuePool.resume(client, where).shutdown()
        [(level, text)] = said()
        assert level == "INFO"
        assert "3 waiting" in text
        caplog.clear()
        index = max((where / "q0" / "index").iterdir())
        data = bytearray(index.read_bytes())
        data[200] ^= 1
        index.write_bytes(data)
        QueuePool.resume(client, where).shutdown(cancel_futures=True)
        [(level, text)] = said()
        assert level == "WARNING"
        assert index.name in text


def test_opened_while_it_is_closed(
    client: Client, pool: QueuePool, where: Path, eventually: Callable[..., Any]
) -> None:
    """Who opens a directory that another client has just shut down waits for it: nobody else has it locked."""

    def slowly(dask_worker: Any) -> None:
        close = DurableQueue.close

        def closing(queue: DurableQueue) -> None:
            threading.Event().wait(0.5)
            close(queue)
            DurableQueue.close = close  # type: ignore[method-assign]

        DurableQueue.close = closing  # type: ignore[method-assign]

    def ended(name: str, dask_scheduler: Any) -> bool:
        return name not in dask_scheduler.plugins["daskqueue"].directory.pools

    pool.put("x")
    client.run(slowly, workers=[pool._connection.route.places[0].address])
    ending = threading.Thread(target=pool.shutdown)
    ending.start()
    eventually(lambda: client.run_on_scheduler(ended, pool.name), LIMIT)
    again = QueuePool.resume(client, where)
    assert again.stats()[0].ready == 1
    ending.join(LIMIT)
    again.shutdown(cancel_futures=True)


def test_a_damaged_payload(client: Client, pool: QueuePool, where: Path) -> None:
    """Never run, never returned: a dead letter that names file and place; what is beside it runs."""
    futures = []
    for n in range(3):  # a record each
        futures.append(pool.options(key=f"k{n}").submit(len, f"payload {n}".encode() * 10))
        pool.flush()
    [log] = [path for path in (where / "q0" / "log").iterdir() if b"payload 1" in path.read_bytes()]
    with log.open("r+b") as file:
        file.seek(log.read_bytes().index(b"payload 1"))
        file.write(b"daylo")
    ConsumerPool(client, pool).start()
    assert [futures[0].result(LIMIT), futures[2].result(LIMIT)] == [90, 90]
    error = futures[1].exception(LIMIT)
    assert isinstance(error, DamagedPayload)
    assert str(log) in str(error)
    [dead] = pool.dead_letters()
    assert (dead.key, dead.reason, dead.error_type) == ("k1", "damaged", "daskqueue_core.errors.DamagedPayload")
    assert dead.message == str(error)


# ------------------------------------------------------------------------------------------------------------ losses


def test_the_next_cluster_goes_on(new_cluster: Callable[..., Any], where: Path, oracle: Any) -> None:
    """Tasks, results, dead letters and keys are there; what has ended does not run again."""
    first, client = new_cluster()
    pool = QueuePool(client, 2, durability="durable", dirpath=where)
    consumers = ConsumerPool(client, pool)
    consumers.start()
    done = [pool.options(key=f"done {n}").submit(marked(oracle), n) for n in range(50)]
    assert [future.result(LIMIT) for future in done] == [n * 10 for n in range(50)]
    assert isinstance(pool.options(key="bad").submit(cross, 1).exception(LIMIT), LookupError)
    consumers.drain(timeout=LIMIT)
    for n in range(50, 400):
        pool.options(key=f"later {n}").submit(marked(oracle), n)
    pool.flush()
    client.close()
    first.close()

    _, client = new_cluster()
    pool = QueuePool.resume(client, where)
    assert len(pool) == 2
    assert sum(queue.ready for queue in pool.stats()) == 350
    found = pool.recovery()
    assert all(each.whole for each in found)
    assert (sum(each.waiting for each in found), sum(each.results for each in found)) == (350, 50)
    assert all(("closed; " in str(each)) == each.clean for each in found), "it was, if there was time"
    assert pool.results([f"done {n}" for n in range(50)]) == {f"done {n}": n * 10 for n in range(50)}
    assert [letter.error_type for letter in pool.dead_letters()] == ["LookupError"]
    again = pool.options(key="done 3").submit(marked(oracle), 3)
    consumers = ConsumerPool(client, pool)
    consumers.start()
    consumers.join(timeout=LIMIT)
    assert again.result(LIMIT) == 30
    assert pool.get_future("later 77").result(LIMIT) == 770
    assert oracle.counts() == {str(n): 1 for n in range(400)}
    pool.shutdown()


def test_queues_host_killed(new_workers: Callable[..., Any], victims: Any, oracle: Any) -> None:
    """Opened elsewhere: nothing is lost, what had ended does not run again, futures end as if nothing had been."""
    client = new_workers(3).client
    dirpath = Path(oracle.path).parent / "pool"
    pool = QueuePool(client, durability="durable", dirpath=dirpath)
    ConsumerPool(client, pool).start()
    victim = victims(client)
    host = victim.host(pool)
    pid = victim.pids()[host]
    futures = [pool.submit(marked(oracle), n) for n in range(3000)]
    assert futures[200].result(LIMIT) == 2000
    os.kill(pid, signal.SIGKILL)
    assert [future.result(LIMIT) for future in futures] == [n * 10 for n in range(3000)]
    assert victim.host(pool) != host
    counts = oracle.counts()
    assert set(counts) == {str(n) for n in range(3000)}
    pool.join(timeout=LIMIT)
    stats = pool.stats()[0]
    assert (stats.finished, stats.ready, stats.delivered, stats.failed) == (3000, 0, 0, 0)
    [found] = pool.recovery()
    assert not found.clean
    assert found.whole
    pool.shutdown()


def test_a_task_that_kills_its_queues_host(
    new_workers: Callable[..., Any], oracle: Any, eventually: Callable[..., Any]
) -> None:
    """One worker at a time, which hosts the queue: the directory knows that it died, so what it ran is blamed."""
    workers = new_workers(1)
    dirpath = Path(oracle.path).parent / "pool"
    pool = QueuePool(workers.client, durability="durable", dirpath=dirpath)
    ConsumerPool(workers.client, pool).start()

    def poison() -> None:
        oracle.mark("poison")
        os.kill(os.getpid(), signal.SIGKILL)

    deadly = pool.submit(poison)
    harmless = [pool.submit(abs, -n) for n in range(5)]
    while not deadly.done():
        eventually(lambda: deadly.done() or not workers.processes[-1].is_alive(), LIMIT)
        workers.add(0 if deadly.done() else 1, wait=False)
    assert isinstance(deadly.exception(), WorkerCrashed)
    assert 3 <= oracle.counts()["poison"] <= 4
    assert [future.result(LIMIT) for future in harmless] == list(range(5))
    pool.shutdown()


def test_consumers_worker_killed(
    new_workers: Callable[..., Any], victims: Any, oracle: Any, gate: Any, eventually: Callable[..., Any]
) -> None:
    """Only what ran there runs again."""
    client = new_workers(3).client
    dirpath = Path(oracle.path).parent / "pool"
    pool = QueuePool(client, durability="durable", dirpath=dirpath)
    ConsumerPool(client, pool).start()
    victim = victims(client)
    pid = victim.pids()[victim.others(pool)[0]]

    def task(n: int) -> int:
        oracle.mark(f"{n} {os.getpid()}")
        if os.getpid() == pid:
            gate(n)
        while not gate.count("came"):  # the others leave it one
            threading.Event().wait(0.005)
        return n

    futures = [pool.submit(task, n) for n in range(60)]
    eventually(lambda: gate.count("came"))
    os.kill(pid, signal.SIGKILL)
    assert [future.result(LIMIT) for future in futures] == list(range(60))
    again = [line.split()[0] for line in oracle.lines() if line.split()[1] == str(pid)]
    assert len(again) == 1
    counts: dict[str, int] = {}
    for line in oracle.lines():
        counts[line.split()[0]] = counts.get(line.split()[0], 0) + 1
    assert {n for n, count in counts.items() if count > 1} == set(again)
    pool.shutdown()


def test_all_workers_go_and_others_come(new_workers: Callable[..., Any], oracle: Any) -> None:
    """Scaled to nothing, and back: the client notices no more than that it takes longer."""
    workers = new_workers(2)
    client = workers.client
    dirpath = Path(oracle.path).parent / "pool"
    pool = QueuePool(client, durability="durable", dirpath=dirpath)
    futures = [pool.submit(marked(oracle), n) for n in range(500)]
    pool.flush()
    client.retire_workers(list(client.scheduler_info(n_workers=-1)["workers"]))
    ConsumerPool(client, pool).start()
    workers.add(2, wait=False)
    assert [future.result(LIMIT) for future in futures] == [n * 10 for n in range(500)]
    assert oracle.counts() == {str(n): 1 for n in range(500)}
    pool.shutdown()


def test_executor(client: Client, where: Path) -> None:
    """A durable pool behind the standard library's interface."""
    with QueueExecutor(client, durability="durable", dirpath=where) as executor:
        assert list(executor.map(abs, range(-50, 0))) == list(range(50, 0, -1))
