"""Health: what is wrong with a pool, said in words; and tags, whose work goes only where they are."""

from __future__ import annotations

import asyncio
import logging
import operator
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from distributed import Client, get_worker

from daskqueue import ConsumerBaseClass, ConsumerPool, PoolClosed, PoolHealth, QueuePool
from daskqueue.client.health import Served, diagnose, only_unserved_left
from daskqueue_core.batch import Kind
from daskqueue_core.directory import ConsumersOf
from daskqueue_core.stats import QueueStats

LIMIT = 60
S = 10**9
CALLS = ConsumersOf((Kind.CALL,), (), 2, 0)


@pytest.fixture
def idle(client: Client) -> Iterator[QueuePool]:
    """A pool that nobody serves yet."""
    pool = QueuePool(client)
    yield pool
    pool.shutdown(cancel_futures=True)


class Items(ConsumerBaseClass):
    """Takes items."""

    def process_item(self, item: Any) -> None:
        """Does nothing with them."""


# ----------------------------------------------------------------------------------------------------------- diagnosis


def said(queues: Any, *consumers: ConsumersOf, workers: int = 2, now: int = 1000 * S) -> list[str]:
    """Texts of the problems of a pool of these queues and consumers."""
    served = Served((), False, consumers, workers)
    return [problem.text for problem in diagnose("p", dict(enumerate(queues)), served, now)]


def test_nothing_wrong() -> None:
    """Work that is served, delayed, dead or running is no problem."""
    busy = QueueStats("u", ready=3, failed=9, scheduled=4, waiting=((Kind.CALL, (), 7),), oldest_ready_at=990 * S)
    assert said([busy], CALLS) == []
    assert said([QueueStats("u")]) == []


@pytest.mark.parametrize(
    ("waiting", "consumers", "expected"),
    [
        (
            (Kind.CALL, (), 3),
            (),
            "3 call(s) wait and no consumer serves them: none runs at all; ConsumerPool(client, pool)",
        ),
        ((Kind.CALL, (), 3), (CALLS._replace(running=0),), "none runs at all"),
        ((Kind.ITEM, (), 2), (CALLS,), "2 item(s) wait and no consumer serves them: none takes this kind of work"),
        ((Kind.CALL, ("gpu", "x"), 1), (CALLS._replace(tags=("x",)),), "with the tags 'gpu', 'x' wait"),
        ((Kind.CALL, ("gpu",), 1), (CALLS,), "ConsumerPool(client, pool, tags=['gpu']).start()"),
        ((Kind.CALL, (), 3), (CALLS._replace(running=0, left=("x", "y")),), "they have left all 2 worker(s)"),
        (
            (Kind.CALL, ("a", "time>=1200"), 1),
            (CALLS._replace(tags=("a",), time_left=61.0), CALLS._replace(time_left=1e9)),
            "1 call(s) with the tags 'a' that need 1200 s wait and no consumer serves them: their jobs end in 61 s",
        ),
        ((Kind.CALL, ("time>=60",), 1), (CALLS._replace(time_left=-3.0),), "in 0 s at the latest; add workers"),
        ((Kind.CALL, ("time>=60", "b"), 1), (CALLS,), "ConsumerPool(client, pool, tags=['b']).start()"),
        ((Kind.CALL, ("a", "b"), 1), (CALLS._replace(tags=("a",)), CALLS._replace(tags=("b",))), "all of these tags"),
    ],
)
def test_unserved(waiting: Any, consumers: Any, expected: str) -> None:
    """Named by kind and tags, with what to start."""
    (text,) = said([QueueStats("u", ready=waiting[2], waiting=(waiting,))], *consumers)
    assert expected in text
    assert text.startswith("queue 0 of pool p: ")


def test_served_by_tags() -> None:
    """A consumer needs all tags of the work, and may have more."""
    work = QueueStats("u", ready=1, waiting=((Kind.CALL, ("a",), 1), (Kind.CALL, (), 1)))
    assert said([work], CALLS._replace(tags=("a", "b"))) == []


def test_old_work() -> None:
    """What consumers there should have taken long ago; unserved work is not said twice."""
    old = QueueStats("u", ready=5, waiting=((Kind.CALL, (), 5),), oldest_ready_at=939 * S)
    (text,) = said([old], CALLS)
    assert "the oldest of 5 ready message(s) was put 61 s ago" in text
    assert said([old._replace(oldest_ready_at=941 * S)], CALLS) == []
    assert len(said([old])) == 1


def test_hosts_and_workers() -> None:
    """A queue that does not answer, a cluster without workers, consumers that did not start."""
    assert "queue 1 of pool p does not answer (gone)" in said([QueueStats("u"), "gone"], CALLS)[0]
    served = Served((), False, (CALLS,), 2, ("", "NotAQueue: there is nothing"))
    (problem,) = diagnose("p", {0: QueueStats("u"), 1: "no worker hosts it"}, served, 0)
    assert "(no worker hosts it; the last worker that tried said: NotAQueue: there is nothing)" in problem.text
    assert "no worker" in said([QueueStats("u")], workers=0)[0]
    assert "did not start on 2 worker(s)" in said([QueueStats("u")], CALLS._replace(failed=2))[0]


def test_a_cause_stays() -> None:
    """While the counts in the text change: it is logged once."""
    served = Served((), False, (), 1)
    problems = [
        diagnose("p", {0: QueueStats("u", ready=n, waiting=((Kind.CALL, ("a",), n),))}, served, 0)[0] for n in (1, 2)
    ]
    assert problems[0].cause == problems[1].cause
    assert problems[0].text != problems[1].text


def test_only_unserved_left() -> None:
    """Nothing runs, and nothing waits that somebody takes."""
    served = Served((), False, (CALLS,), 1)
    unserved = QueueStats("u", ready=2, waiting=((Kind.CALL, ("a",), 2),))
    assert only_unserved_left([unserved, QueueStats("v")], served)
    assert not only_unserved_left([QueueStats("v")], served)
    assert not only_unserved_left([unserved._replace(delivered=1)], served)
    assert not only_unserved_left([unserved._replace(ready=3, waiting=(*unserved.waiting, (Kind.CALL, (), 1)))], served)


# ----------------------------------------------------------------------------------------------------------- a cluster


def test_health(client: Client, idle: QueuePool) -> None:
    """Counts, and what is unserved until somebody serves it."""
    assert idle.health() == PoolHealth(True, (), tuple(idle.stats()), 2, 0, 0, 0, 0, 0)
    idle.submit_many(operator.truediv, [])
    idle.batch_submit([(operator.truediv, 1, n) for n in (0, 1)])
    idle.options(delay=60, tags=["later"]).submit(abs, 1)
    idle.put("item")
    idle.flush()
    health = idle.health()
    assert not health.ok
    assert (health.ready, health.scheduled, health.consumers) == (3, 1, 0)
    assert len(health.problems) == 3
    assert all("none runs at all" in problem for problem in health.problems)
    with ConsumerPool(client, idle) as calls, ConsumerPool(client, idle, Items, n_consumers=1) as items:
        idle.purge("scheduled")
        idle.join(timeout=LIMIT)
        assert (len(calls), len(items)) == (2, 1)
        health = idle.health()
        assert health.ok
        assert (health.consumers, health.dead_letters, health.ready) == (3, 1, 0)


def test_tags(client: Client, idle: QueuePool, new_workers: Callable[..., Any]) -> None:
    """Tagged work goes to consumers that have all its tags; other work to all; the rest shows."""
    plain = ConsumerPool(client, idle, n_consumers=1)
    plain.start()
    gpu = ConsumerPool(client, idle, n_consumers=1, tags=["gpu", "big"])

    def where() -> str:
        return str(get_worker().address)

    view = idle.options(tags=["gpu"])
    tagged = [view.submit(where) for _ in range(3)]
    both = view.options(tags=["big", "gpu"]).submit_many(abs, range(3))
    none = idle.options(tags=["tape"]).submit(where)
    assert idle.submit(abs, -1).result(LIMIT) == 1
    idle.flush()
    waiting = {tags: count for _, tags, count in idle.stats()[0].waiting}
    assert waiting == {("gpu",): 3, ("big", "gpu"): 3, ("tape",): 1}
    assert len(idle.health().problems) == 3
    assert not tagged[0].done()
    gpu.start()
    assert len({future.result(LIMIT) for future in tagged}) == 1
    assert both.results(LIMIT) == [0, 1, 2]
    (problem,) = idle.health().problems
    assert "1 call(s) with the tags 'tape' wait" in problem
    assert "tags=['tape']" in problem
    assert not none.done()


def test_shutdown_does_not_wait_for_what_nobody_serves(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tags that no consumer has; what they serve is done first."""
    monkeypatch.setattr("daskqueue.client.finishing.LOOK_S", 0.1)
    pool = QueuePool(client)
    ConsumerPool(client, pool).start()
    nobody = pool.options(tags=["nobody"]).submit(abs, 1)
    later = pool.options(delay=0.35).submit(abs, -2)
    pool.shutdown()
    assert nobody.cancelled()
    assert later.result(0) == 2


def test_logged_once(idle: QueuePool, caplog: pytest.LogCaptureFixture) -> None:
    """However often it is asked, and each cause."""
    idle.submit(abs, 1)
    idle.flush()
    with caplog.at_level(logging.WARNING, "daskqueue"):
        for _ in range(3):
            idle.health()
            idle.submit(abs, 1)
            idle.flush()
        idle.put("item")
        idle.health()
    lines = [record.getMessage() for record in caplog.records if idle.name in record.getMessage()]
    assert len(lines) == 2
    assert "1 call(s)" in lines[0]
    assert "1 item(s)" in lines[1]


def test_who_waits_in_vain_looks(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, eventually: Any
) -> None:
    """A client whose outcomes do not come logs why, without being asked."""
    monkeypatch.setattr("daskqueue.client.collector.POLL_S", 0.05)
    with caplog.at_level(logging.WARNING, "daskqueue"):
        pool = QueuePool(client)
        pool.options(tags=["moon"]).submit(abs, 1)
        eventually(lambda: any("'moon'" in record.getMessage() for record in caplog.records))
        pool.shutdown(cancel_futures=True)


def test_a_pool_that_is_over(client: Client) -> None:
    """PoolClosed, as every call."""
    pool = QueuePool(client)
    pool.shutdown()
    with pytest.raises(PoolClosed):
        pool.health()


def test_a_cluster_without_workers(
    new_workers: Callable[..., Any], victims: Any, eventually: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said within seconds, and mended when one comes."""
    monkeypatch.setattr("daskqueue.client.checkup.ANSWER_S", 0.5)
    workers = new_workers(1)
    with QueuePool(workers.client, name="alone") as pool:
        pool.submit(abs, 1)
        pool.flush()
        victims(workers.client).kill(next(iter(workers.client.scheduler_info()["workers"])))
        health = eventually(lambda: (seen := pool.health()).problems and "no worker" in str(seen.problems) and seen)
        assert not health.ok
        assert any("does not answer" in problem for problem in health.problems) or health.queues
        workers.add(1, wait=False)
        workers.client.wait_for_workers(1, timeout=30)
        with ConsumerPool(workers.client, pool):
            pool.join(timeout=LIMIT)
            assert pool.health().ok


def test_asynchronous(cluster: Any) -> None:
    """Awaited."""

    async def run() -> None:
        async with (
            Client(cluster.scheduler_address, asynchronous=True, set_as_default=False) as client,
            QueuePool(client) as pool,
        ):
            assert (await pool.health()).ok
            task = pool.options(tags=["nowhere"]).submit(abs, 1)
            await pool.flush()
            assert "'nowhere'" in (await pool.health()).problems[0]
            async with ConsumerPool(client, pool, tags=["nowhere"]):
                assert await task == 1
                assert (await pool.health()).ok

    asyncio.run(run())
