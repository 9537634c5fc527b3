"""Order and time: priorities, delays, times, expiry; also when their queue is lost meanwhile."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from distributed import Client

from daskqueue import ConsumerPool, QueuePool, TaskExpired

LIMIT = 60


@pytest.fixture
def idle(client: Client) -> Iterator[QueuePool]:
    """A pool that nobody serves yet."""
    pool = QueuePool(client)
    yield pool
    pool.shutdown(cancel_futures=True)


@pytest.fixture
def pool(client: Client, idle: QueuePool) -> QueuePool:
    """With one consumer on each worker."""
    ConsumerPool(client, idle).start()
    return idle


def one_by_one(client: Client, pool: QueuePool) -> None:
    """Let one consumer do everything, in order."""
    with ConsumerPool(client, pool, n_consumers=1, concurrency=1, batch_size=1):
        pool.join(timeout=LIMIT)


# ------------------------------------------------------------------------------------------------------------ priority


def test_priority(client: Client, idle: QueuePool, oracle: Any) -> None:
    """Higher first, in order of submission inside; the whole range of 16 bits."""
    for name, priority in (("c1", None), ("e", -0x8000), ("b", 1), ("a", 0x7FFF), ("c2", 0), ("d", -1)):
        idle.options(priority=priority).submit(oracle.mark, name)
        idle.flush()
    idle.options(priority=2).submit_many(oracle.mark, ["b+1", "b+2"])
    idle.options(priority=-2).batch_submit([(oracle.mark, "d-1"), (oracle.mark, "d-2")])
    one_by_one(client, idle)
    assert oracle.lines() == ["a", "b+1", "b+2", "b", "c1", "c2", "d", "d-1", "d-2", "e"]


# --------------------------------------------------------------------------------------------------------------- delay


def test_delay(pool: QueuePool) -> None:
    """Not before; the caller waits for nothing; others overtake it."""
    submitted = time.time()
    late = pool.options(delay=0.3).submit(time.time)
    much_later = pool.options(delay=3600).submit(time.time)
    assert pool.submit(time.time).result(LIMIT) >= submitted
    assert late.result(LIMIT) - submitted >= 0.3
    assert pool.stats()[0].scheduled == 1
    assert much_later.cancel()


def test_delays_of_many(pool: QueuePool) -> None:
    """One for all of a batch, or each its own in one batch."""
    began = time.time()
    values = pool.options(delay=0.3).map(lambda _: time.time(), range(100))
    assert all(value - began >= 0.3 for value in values)
    began = time.time()
    futures = [pool.options(delay=0.05 * n).submit(time.time) for n in (4, 2, 72_000, 0)]
    for n, future in zip((4, 2, 0), (futures[0], futures[1], futures[3])):
        assert future.result(LIMIT) - began >= 0.05 * n
    assert futures[2].cancel(), "it has a time of its own"


@pytest.mark.slow
def test_due_within_50_ms(pool: QueuePool) -> None:
    """On a machine that is not busy."""
    lateness = []
    for _ in range(10):
        due = time.time() + 0.2
        lateness.append(pool.options(eta=due).submit(time.time).result(LIMIT) - due)
    assert sorted(lateness)[5] < 0.05


@pytest.mark.parametrize("kind", ["seconds", "aware", "local"])
def test_eta(pool: QueuePool, kind: str) -> None:
    """A time, in every form; one that has passed means at once."""

    def given(at: float) -> Any:
        if kind == "seconds":
            return at
        aware = datetime.fromtimestamp(at, timezone(timedelta(hours=5)))
        return aware if kind == "aware" else aware.astimezone().replace(tzinfo=None)

    due = time.time() + 0.3
    assert pool.options(eta=given(due)).submit(time.time).result(LIMIT) >= due - 0.001
    assert pool.options(eta=given(time.time() - 3600)).submit(abs, -1).result(LIMIT) == 1


# -------------------------------------------------------------------------------------------------------------- expires


def test_expires(client: Client, idle: QueuePool, oracle: Any) -> None:
    """What has not begun by then ends with TaskExpired, by itself; what nobody submitted so is not touched."""
    futures = [idle.options(expires=0.2).submit(oracle.mark, n) for n in range(5)]
    batch = idle.options(expires=0.2).submit_many(oracle.mark, range(5, 10))
    passed = idle.options(expires=datetime.now(timezone.utc) - timedelta(hours=1)).submit(oracle.mark, "passed")
    stays = idle.submit(oracle.mark, "stays")
    for future in (*futures, passed):
        error = future.exception(LIMIT)
        assert isinstance(error, TaskExpired)
        assert future.key in str(error)
        assert future.attempts == 0
    assert batch.wait(LIMIT)
    assert {type(error) for error in batch.failures().values()} == {TaskExpired}
    assert idle.stats()[0].expired >= 6
    one_by_one(client, idle)
    assert stays.result(LIMIT) is None
    assert oracle.lines() == ["stays"]
    assert idle.dead_letters() == []
    assert isinstance(idle.failures([passed.key])[passed.key], TaskExpired)


def test_what_runs_does_not_expire(pool: QueuePool, gate: Any, eventually: Any) -> None:
    """It has begun in time."""
    for seconds in (0.5, 5.0, 50.0):  # to begin in; a machine that was too slow gets more
        over = time.time() + seconds
        future = pool.options(expires=datetime.fromtimestamp(over, timezone.utc)).submit(gate, 1)
        eventually(lambda: gate.count("came") or future.done())  # noqa: B023  # called at once
        if gate.count("came"):
            break
    eventually(lambda: time.time() > over + 0.1)
    gate.open()
    assert future.result(LIMIT) == 1


def test_expires_before_its_delay_is_over(pool: QueuePool) -> None:
    """It never begins."""
    future = pool.options(delay=60, expires=0.1).submit(abs, 1)
    assert isinstance(future.exception(LIMIT), TaskExpired)


# -------------------------------------------------------------------------------------------------------------- a loss


def test_queue_lost(new_workers: Callable[..., Any], victims: Any, oracle: Any, eventually: Any) -> None:
    """What is put again keeps priority, time and expiry."""
    workers = new_workers(2)
    with QueuePool(workers.client, name="times") as pool:
        due = time.time() + 1.5
        late = pool.options(eta=due).submit(time.time)
        each = [pool.options(eta=due + n / 10).submit(time.time) for n in range(3)]
        expiring = pool.options(expires=datetime.fromtimestamp(due, timezone.utc)).submit(abs, 1)
        keyed = pool.options(key="k", eta=due, priority=4).submit(time.time)
        order = [pool.options(priority=n).submit(oracle.mark, n) for n in (1, 3, 2)]
        never = [pool.options(eta=due + 3600 * n).submit(time.time) for n in (1, 2)]
        pool.flush()
        before = pool.stats()[0]
        victim = victims(workers.client)
        victim.kill(victim.host(pool))
        # one may have expired by then; all others are there again
        eventually(lambda: (stats := pool.stats()[0]).uuid != before.uuid and stats.unfinished in (10, 11))
        assert isinstance(expiring.exception(LIMIT), TaskExpired)
        assert time.time() >= due
        with ConsumerPool(workers.client, pool, n_consumers=1, concurrency=1, batch_size=1):
            assert not cf.wait([late, keyed, *each, *order], LIMIT).not_done
            assert oracle.lines() == ["3", "2", "1"]
            assert min(late.result(0), keyed.result(0)) >= due
            assert [future.result(0) >= due + n / 10 for n, future in enumerate(each)] == [True] * 3
            assert pool.get_future("k").result(LIMIT) == keyed.result(0)
            assert pool.stats()[0].scheduled == 2
            assert all(future.cancel() for future in never)


# -------------------------------------------------------------------------------------------------------- asynchronous


def test_asynchronous(cluster: Any) -> None:
    """Awaited."""

    async def run() -> None:
        async with (
            Client(cluster.scheduler_address, asynchronous=True, set_as_default=False) as client,
            QueuePool(client) as pool,
        ):
            with pytest.raises(TaskExpired):
                await pool.options(expires=0.1).submit(abs, 1)
            async with ConsumerPool(client, pool):
                began = time.time()
                assert await pool.options(delay=0.2, priority=3).submit(time.time) - began >= 0.2
                values = [value async for value in pool.options(delay=0.1).map(abs, [-1, -2])]
                assert values == [1, 2]

    asyncio.run(run())
