"""Machines that hang, and go on without knowing it; and hosts of which nobody can say whether they are dead.

Dask gives a process up that says nothing for `worker-ttl`. What it held is then others'. It wakes up later and goes on
as if nothing had been: its news is taken if it is news, and what it writes to a queue that another has opened is
refused. Here the scheduler is told to give it up at once; the slow tests wait for ten seconds of silence, which Dask
notices after some twenty-three.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path
from typing import Any

import pytest
from distributed import Scheduler

from daskqueue import ConsumerPool, QueuePool
from daskqueue.testing import Member, Nursery, Oracle, ProcessCluster
from daskqueue_storage import ReadOnlyQueue

LIMIT = 60
TTL = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "10s"}
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """Where all processes of this module come from."""
    nursery = Nursery()
    yield nursery
    nursery.close()


def only(members: list[Member]) -> Member:
    """The member of a role that one plays."""
    (member,) = members
    return member


async def remove_worker(name: str, dask_scheduler: Scheduler) -> None:
    """What the scheduler does with one that is dead."""
    (address,) = [address for address, worker in dask_scheduler.workers.items() if worker.name == name]
    await dask_scheduler.remove_worker(address, stimulus_id="check-worker-ttl-told")


def give_up(cluster: ProcessCluster, frozen: Member, by_itself: bool) -> None:
    """The scheduler believes that a process is dead: `by_itself` in its time, or because we say so."""
    if not by_itself:
        cluster.client.run_on_scheduler(remove_worker, frozen.name)


class Hanging:
    """A task whose process hangs, once, in the middle of it, if it is `pid`. Elsewhere it waits at a gate then."""

    def __init__(self, folder: Path, pid: int | None, gate: Any) -> None:
        self.oracle = Oracle(folder / "hanging")
        self.claim = str(folder / "claimed")
        self.pid = pid
        self.gate = gate

    def __call__(self, n: int) -> str:
        """Says what became of it: "plain", "late" where it hung, "again" where that one ran once more."""
        if os.getpid() == self.pid:
            try:
                os.close(os.open(self.claim, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return "plain"
            self.oracle.mark(n)
            os.kill(os.getpid(), signal.SIGSTOP)
            self.oracle.mark("went on")
            return "late"
        if self.oracle.lines()[:1] != [str(n)]:
            return "plain"
        self.gate(n)
        return "again"

    @property
    def hung(self) -> int | None:
        """Which task it was; None until then."""
        return next((int(line) for line in self.oracle.lines() if line.isdigit()), None)


@pytest.mark.parametrize("durable", [False, True], ids=["transient", "durable"])
@pytest.mark.parametrize("finished", [False, True], ids=["nobody finished it", "somebody finished it"])
@pytest.mark.parametrize("by_itself", [False, pytest.param(True, marks=slow)], ids=["told", "seen"])
def test_consumer_wakes_up(
    durable: bool,
    finished: bool,
    by_itself: bool,
    tmp_path: Path,
    nursery: Nursery,
    new_gate: Callable[[], Any],
    eventually: Callable[..., Any],
) -> None:
    """Its late success is accepted if nobody has finished the task, and changes nothing otherwise."""
    with ProcessCluster(3, nursery=nursery, env=TTL) as cluster:
        options: dict[str, Any] = {"durability": "durable", "dirpath": tmp_path / "pool"} if durable else {}
        pool = QueuePool(cluster.client, **options)
        frozen = only(
            cluster.find("consumer", pool)
        )  # there is another: what may have killed it is not run by the host
        gate = new_gate()
        task = Hanging(tmp_path, frozen.pid, gate)
        ConsumerPool(cluster.client, pool, batch_size=1).start()
        futures = [pool.submit(task, n) for n in range(40)]
        hung = eventually(lambda: (task.hung,) if task.hung is not None else None)[0]
        assert gate.count("came") == 0, "it is the frozen one's as long as Dask keeps that worker"
        give_up(cluster, frozen, by_itself)
        eventually(lambda: gate.count("came") == 1, LIMIT)
        if finished:
            gate.open()
            assert futures[hung].result(LIMIT) == "again"
        frozen.go_on()
        eventually(lambda: "went on" in task.oracle.lines())
        expected = "again" if finished else "late"
        assert futures[hung].result(LIMIT) == expected
        gate.open()
        pool.join(timeout=LIMIT)
        assert [future.result(LIMIT) for future in futures] == [expected if n == hung else "plain" for n in range(40)]
        eventually(lambda: sum(stats.stale for stats in pool.stats()) >= 1)
        pool.shutdown()


def test_lease_timeout(
    tmp_path: Path, nursery: Nursery, new_gate: Callable[[], Any], eventually: Callable[..., Any]
) -> None:
    """Who does not wait for Dask's patience says so: the task runs elsewhere while its first process still hangs."""
    with ProcessCluster(3, nursery=nursery) as cluster:
        pool = QueuePool(cluster.client, lease_timeout=3)
        frozen = only(cluster.find("consumer", pool))
        gate = new_gate()
        gate.open()
        task = Hanging(tmp_path, frozen.pid, gate)
        ConsumerPool(cluster.client, pool, batch_size=1).start()
        futures = [pool.submit(task, n) for n in range(40)]
        values = [future.result(LIMIT) for future in futures]
        assert task.hung is not None
        assert values == ["again" if n == task.hung else "plain" for n in range(40)]
        assert len(cluster.client.scheduler_info(n_workers=-1)["workers"]) == 3, "it is still a member"
        frozen.go_on()
        pool.shutdown()


class HoldingTheGil:
    """A task that lets nothing else run in its process for some seconds if that is `pid`; elsewhere it waits.

    Not before it waits there: the queue, which is in that process, would give nothing to anybody.
    """

    def __init__(self, oracle: Oracle, pid: int | None, seconds: float, gate: Any) -> None:
        self.oracle = oracle
        self.pid = pid
        self.seconds = seconds
        self.gate = gate

    def __call__(self, n: int) -> int:
        """Where it ran."""
        self.oracle.mark(n)
        if os.getpid() == self.pid:
            until = time.monotonic() + LIMIT
            while not self.gate.count("came") and time.monotonic() < until:
                threading.Event().wait(0.01)
            ctypes.PyDLL(None).usleep(int(self.seconds * 1e6))
        else:
            self.gate(n)
        return os.getpid()


def test_the_gil_is_held(tmp_path: Path, nursery: Nursery, new_gate: Callable[[], Any]) -> None:
    """The host hears nobody for longer than a lease lasts: what others run there is not taken from them.

    Nor is what it runs itself, which says nothing meanwhile.
    """
    oracle, gate = Oracle(tmp_path / "ran"), new_gate()
    with ProcessCluster(2, nursery=nursery) as cluster:
        pool = QueuePool(cluster.client, lease_timeout=3)
        host = only(cluster.find("host", pool))
        task = HoldingTheGil(oracle, host.pid, 5.0, gate)
        ConsumerPool(cluster.client, pool, batch_size=1).start()
        futures = [pool.submit(task, n) for n in range(2)]
        there = [future for future in wait(futures, LIMIT, FIRST_COMPLETED).done if future.result() == host.pid]
        assert len(there) == 1
        gate.open()
        assert len({future.result(LIMIT) for future in futures}) == 2
        pool.join(timeout=LIMIT)
        pool.shutdown()
    assert oracle.counts() == {"0": 1, "1": 1}


def times_three(n: int) -> int:
    """A task."""
    return 3 * n


@slow
def test_host_wakes_up(tmp_path: Path, nursery: Nursery, eventually: Callable[..., Any]) -> None:
    """Another has opened its queue: what it had been sent meanwhile, it does not write. Each task has one outcome."""
    where = tmp_path / "pool"
    with ProcessCluster(3, nursery=nursery, env=TTL) as cluster:
        pool = QueuePool(cluster.client, durability="durable", dirpath=where, storage={"lock_ttl": 2.0})
        ConsumerPool(cluster.client, pool).start()
        futures = [pool.options(key=f"k{n}").submit(times_three, n) for n in range(500)]
        assert futures[0].result(LIMIT) == 0
        frozen = only(cluster.find("host", pool))
        frozen.freeze()
        futures += [pool.options(key=f"k{n}").submit(times_three, n) for n in range(500, 1000)]
        assert [future.result(2 * LIMIT) for future in futures] == [3 * n for n in range(1000)]
        host = eventually(lambda: cluster.find("host", pool))
        assert frozen not in host
        files = {path: path.stat().st_size for path in (where / "q0").rglob("*") if path.is_file()}
        frozen.go_on()
        assert frozen.wait(LIMIT) is not None, "a worker that was given up ends"
        assert files == {path: path.stat().st_size for path in files}, "it wrote nothing"
        futures += [pool.options(key=f"k{n}").submit(times_three, n) for n in range(1000, 1500)]
        pool.join(timeout=LIMIT)
        assert pool.results() == {f"k{n}": 3 * n for n in range(1500)}
        assert sum(stats.puts for stats in pool.stats()) == 1500
        pool.shutdown()
    with ReadOnlyQueue(where / "q0") as queue:
        assert queue.stats().acked == 1500


def test_a_directory_that_nobody_sees(tmp_path: Path, nursery: Nursery, eventually: Callable[..., Any]) -> None:
    """It is not served empty instead: its tasks wait, `health` says why, and it is opened once it is there again."""
    where, away = tmp_path / "pool" / "q0", tmp_path / "away"
    with ProcessCluster(3, nursery=nursery) as cluster:
        pool = QueuePool(cluster.client, durability="durable", dirpath=where.parent)
        ConsumerPool(cluster.client, pool).start()
        assert pool.submit(times_three, 1).result(LIMIT) == 3
        host = only(cluster.find("host", pool))
        where.rename(away)
        host.kill()
        futures = [pool.submit(times_three, n) for n in range(100)]

        def explained() -> bool:
            return any("NotAQueue" in problem for problem in pool.health().problems)

        eventually(explained, LIMIT)
        assert not where.exists()
        assert not any(future.done() for future in futures)
        away.rename(where)
        assert [future.result(LIMIT) for future in futures] == [3 * n for n in range(100)]
        pool.join(timeout=LIMIT)
        assert pool.health().ok
        pool.shutdown()


def pretend_another_boot(seed: int) -> None:
    """As if this process ran on a machine of its own, whose processes nobody else can see."""
    from daskqueue_storage import files

    files._boot_id = lambda: bytes([seed]) * 16
    files._known.clear()


def test_host_on_another_machine(tmp_path: Path, nursery: Nursery) -> None:
    """Nobody can tell whether it is dead: its lock lapses first, then another opens the queue. Nothing is lost."""
    oracle, ttl = Oracle(tmp_path / "ran"), 1.5

    def task(n: int) -> int:
        oracle.mark(n)
        return 3 * n

    with ProcessCluster(2, nursery=nursery) as cluster:
        for seed, address in enumerate(cluster.client.scheduler_info(n_workers=-1)["workers"], start=1):
            cluster.client.run(pretend_another_boot, seed, workers=[address])
        pool = QueuePool(cluster.client, durability="durable", dirpath=tmp_path / "pool", storage={"lock_ttl": ttl})
        ConsumerPool(cluster.client, pool).start()
        assert [pool.submit(task, n).result(LIMIT) for n in range(3)] == [0, 3, 6]
        host = only(cluster.find("host", pool))
        began = time.monotonic()
        host.kill()
        futures = [pool.submit(task, n) for n in range(3, 50)]
        assert [future.result(LIMIT) for future in futures] == [3 * n for n in range(3, 50)]
        assert time.monotonic() - began >= ttl, "it might have been alive for so long"
        pool.join(timeout=LIMIT)
        pool.shutdown()
    assert set(oracle.counts()) == {str(n) for n in range(50)}
