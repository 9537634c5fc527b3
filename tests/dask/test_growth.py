"""Many workers: 64 in one process, which long-poll a queue each while others join and leave."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from distributed import Client, LocalCluster

from daskqueue import ConsumerPool, QueuePool
from daskqueue.testing import Oracle

LIMIT = 100
MANY = 64


def noted(oracle: Oracle) -> Callable[[int], int]:
    """A task that says that it ran."""

    def note(n: int) -> int:
        oracle.mark(n)
        return n

    return note


@pytest.fixture
def many() -> Iterator[tuple[LocalCluster, Client]]:
    """A cluster of 64 workers of one thread each, in this process."""
    with LocalCluster(
        n_workers=MANY, threads_per_worker=1, processes=False, dashboard_address=None, memory_limit=0, silence_logs=50
    ) as cluster:
        with Client(cluster, set_as_default=False) as client:
            client.wait_for_workers(MANY, timeout=LIMIT)
            yield cluster, client


@pytest.mark.parametrize("n_queues", [1, 8])
def test_all_poll(many: tuple[LocalCluster, Client], n_queues: int, oracle: Oracle) -> None:
    """Each task runs once, whoever is woken for it: one at a time, in blocks, and from many threads."""
    (_, client), note = many, noted(oracle)
    with QueuePool(client, n_queues) as pool, ConsumerPool(client, pool):
        assert list(pool.map(note, range(20_000))) == list(range(20_000))
        futures = [pool.submit(note, n) for n in range(20_000, 21_000)]
        assert [future.result(LIMIT) for future in futures] == list(range(20_000, 21_000))
        for n in range(21_000, 21_050):  # all wait, and one is woken
            assert pool.submit(note, n).result(LIMIT) == n
    assert oracle.counts() == {str(n): 1 for n in range(21_050)}


def test_join_and_leave(many: tuple[LocalCluster, Client], oracle: Oracle, eventually: Callable[..., Any]) -> None:
    """Workers come and go while tasks run, hosts among them: all end with their value, and most ran once."""
    (cluster, client), note = many, noted(oracle)
    chance = random.Random(11)
    with QueuePool(client, 8) as pool, ConsumerPool(client, pool):
        futures: dict[int, Any] = {}
        for round_ in range(4):
            for _ in range(400):
                futures[len(futures)] = pool.submit(note, len(futures))
            batch = pool.submit_many(note, range(-4000 * (round_ + 1), -4000 * round_))
            leaving = chance.sample(sorted(cluster.scheduler.workers), 4)
            client.retire_workers(leaving, close_workers=True)
            cluster.scale(MANY + 4 * (round_ + 1))  # it counts those that left
            assert batch.results(LIMIT) == list(range(-4000 * (round_ + 1), -4000 * round_))
        assert [future.result(LIMIT) for future in futures.values()] == list(range(1600))
        pool.join(timeout=LIMIT)
        eventually(lambda: len(cluster.scheduler.workers) >= MANY, LIMIT)
        assert list(pool.map(note, range(10_000, 11_000))) == list(range(10_000, 11_000))
    assert {str(n) for n in range(-16_000, 1600)} <= set(oracle.counts())
