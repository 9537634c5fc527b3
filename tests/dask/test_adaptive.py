"""Adaptive scaling: how many workers the queues want, which must stay; and a cluster that grows and shrinks by it."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from distributed import Client

from daskqueue import ConsumerPool, QueuePool
from daskqueue.scheduler.adaptive import needed_workers, wanted_workers
from daskqueue.worker.load import Tempo
from daskqueue_core.batch import Kind
from daskqueue_core.directory import Directory
from daskqueue_core.stats import QueueDepth

A, B, C = "tcp://a", "tcp://b", "tcp://c"
CALL = (int(Kind.CALL), ())
LIMIT = 90


@pytest.fixture
def directory() -> Directory:
    """Two workers, and a pool of one queue, u0 on A."""
    numbers = count()
    directory = Directory(lambda: f"u{next(numbers)}")
    for address in (A, B):
        directory.worker_joined(address, f"{address}#1", 1)
    directory.open("p", {}, 1, client="c", owned=False)
    directory.hosted("p", "u0", 0)
    return directory


def consume(directory: Directory, count: int | None = None, **spec: Any) -> None:
    """Start consumers of calls, with half an hour left on each worker."""
    directory.start_consumers("p", "k", spec, count=count, kinds=(Kind.CALL,), early_ack=False)
    for address in (A, B):
        directory.consumers_began("p", "k", address, 1800.0, 0.0)


def depth(ready: int = 0, delivered: int = 0, scheduled: int = 0, unread: int = 0, tags: tuple[str, ...] = ()) -> Any:
    """What a queue says, of calls with these tags."""
    return tuple(QueueDepth(ready, delivered, scheduled, unread, ((Kind.CALL, tags, ready + scheduled),)))


def load(*consumers: tuple[Any, ...], **queues: Any) -> dict[str, Any]:
    """What a worker says."""
    return {"queues": queues, "consumers": [("p", *each) for each in consumers]}


def wanted(directory: Directory, loads: dict[str, Any]) -> int:
    """With a target of 5 s, as Dask's."""
    return wanted_workers(directory, loads, target_s=5.0, unknown_s=0.5, now=10.0)


@pytest.mark.parametrize(
    ("queue", "consumers", "expected"),
    [
        (depth(), (2, 0, 1.0), 1),
        (depth(scheduled=9000), (2, 0, 1.0), 1),
        (depth(ready=1_000_000), (1, 1, 1e-6), 1),
        (depth(ready=99, delivered=1), (1, 1, 1.0), 20),
        (depth(ready=99, delivered=1), (2, 1, 1.0), 10),
        (depth(ready=7, delivered=3), (1, 1, 3600.0), 10),
        (depth(delivered=3), (1, 1, 3600.0), 3),
        (depth(ready=100), (1, 0, None), 10),
        (depth(ready=100, tags=("gpu",)), (1, 0, 1.0), 1),
        (depth(ready=100, tags=("time>=1800",)), (1, 0, 1.0), 20),
        (depth(ready=100, tags=("time>=1810",)), (1, 0, 1.0), 1),
    ],
)
def test_how_many_are_wanted(directory: Directory, queue: Any, consumers: Any, expected: int) -> None:
    """To be done in 5 s with what a message takes and a worker runs at once; never more slots than messages.

    What nobody serves, and nobody would in a job like those there are, wants no worker.
    """
    consume(directory)
    assert wanted(directory, {A: load(consumers, u0=queue), B: load(consumers)}) == expected


def test_a_number_of_consumers_is_enough(directory: Directory) -> None:
    """More workers would have none."""
    consume(directory, 3)
    assert wanted(directory, {A: load((1, 1, 9.0), u0=depth(ready=1000))}) == 3


def test_without_consumers(directory: Directory) -> None:
    """One worker hosts the queue; none is needed when no pool is open."""
    assert wanted(directory, {A: load(u0=depth(ready=1000))}) == 1
    assert wanted(directory, {}) == 1
    directory.worker_left(A)
    directory.worker_left(B)
    assert wanted(directory, {}) == 1, "it waits for a host"
    directory.close("p")
    assert wanted(directory, {}) == 0


@pytest.mark.parametrize("busy", [depth(ready=1), depth(delivered=1), depth(scheduled=1), depth(unread=1)])
def test_who_must_stay(directory: Directory, busy: Any) -> None:
    """Who runs something, and who hosts work, or outcomes that were not heard."""
    directory.worker_joined(C, f"{C}#1", 1)
    assert needed_workers(directory, {A: load((1, 0, None), u0=busy), B: load((1, 0, None))}) == {A}
    assert needed_workers(directory, {A: load(u0=busy), B: load((1, 1, None)), C: load()}) == {A, B}


def test_one_host_stays(directory: Directory) -> None:
    """The one that hosts most; the queues of the others move when they are closed."""
    assert needed_workers(directory, {}) == {A}
    directory.open("q", {}, 2, client="c", owned=False)
    assert [place.address for place in directory.pools["q"].places] == [B, A]
    assert needed_workers(directory, {A: load(u0=depth()), B: load()}) == {A}
    directory.close("p")
    directory.close("q")
    assert needed_workers(directory, {A: load(), B: load()}) == set()


def test_outcomes_on_disk(directory: Directory) -> None:
    """Their client may never come back: they keep no worker but the one that hosts at all."""
    directory.open("d", {}, 2, client="c", owned=False, uuids=["d0", "d1"])
    assert [place.address for place in directory.pools["d"].places] == [B, A]
    directory.close("p")
    unread = {A: load(d1=depth(unread=1)), B: load(d0=depth(unread=1))}
    assert needed_workers(directory, unread) == {A}


def test_tempo() -> None:
    """Seconds a message, of what was done lately and of what runs."""
    tempo = Tempo()
    assert tempo.per_message([], 0.0) is None
    assert tempo.per_message([(1, 30.0)], 30.0) == 30.0
    tempo.observe(1000, 1.0, 100.0)
    tempo.observe(1000, 3.0, 100.0)
    assert tempo.per_message([], 100.0) == pytest.approx(0.002)
    assert tempo.per_message([], 1000.0) == pytest.approx(0.002)
    assert tempo.per_message([(1, 0.5)], 100.0) == pytest.approx(4.5 / 2001)
    assert tempo.per_message([(1, 600.0)], 700.0) == pytest.approx(600.0, rel=0.01), "a long one that began since"
    assert math.isfinite(tempo.per_message([(1, 1.0)], 1e6) or math.inf)


# --------------------------------------------------------------------------------------------------------- on a cluster


def workers(client: Client) -> int:
    """How many there are."""
    return len(client.scheduler_info(n_workers=-1)["workers"])


def test_a_cluster_grows_and_shrinks(
    new_cluster: Callable[..., Any], new_gate: Callable[[], Any], eventually: Callable[..., Any]
) -> None:
    """From one worker to three for long tasks, none of which runs twice, and back to one: which still has the queue."""
    cluster, client = new_cluster(n_workers=1)
    with QueuePool(client) as pool, ConsumerPool(client, pool):
        kept = pool.submit(abs, -1)
        assert kept.result(LIMIT) == 1
        gate = new_gate()
        cluster.adapt(minimum=0, maximum=3, interval="200ms", wait_count=2, target_duration="1s")
        batch = pool.submit_many(gate, range(6))
        eventually(lambda: gate.count("came") == 3, LIMIT)
        gate.open()
        assert sorted(batch.results()) == list(range(6))
        eventually(lambda: workers(client) == 1, LIMIT)
        assert gate.count("came") == 6
        assert pool.results()[kept.key] == 1, "the queue's host has stayed"
        assert pool.submit(abs, -2).result(LIMIT) == 2


def test_a_durable_pool_wants_a_worker(
    new_cluster: Callable[..., Any], eventually: Callable[..., Any], tmp_path: Any
) -> None:
    """It can be opened, and worked off, where there is no worker at all; when it is over, there is none again."""
    cluster, client = new_cluster(n_workers=0)
    cluster.adapt(minimum=0, maximum=1, interval="200ms", wait_count=2)
    with QueuePool(client, durability="durable", dirpath=tmp_path / "pool") as pool, ConsumerPool(client, pool):
        assert pool.submit(abs, -1).result(LIMIT) == 1
    eventually(lambda: workers(client) == 0, LIMIT)
