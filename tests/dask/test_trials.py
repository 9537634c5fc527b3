"""Queues that answer with errors: a few are nothing, what fails again and again ends, and never silently.

What a host would answer is said by a link of ours between the pool and its real one.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from distributed import Client

from daskqueue import ConsumerPool, DaskQueueError, PoolClosed, QueueLost, QueuePool
from daskqueue.client.task_batch import TaskBatch
from daskqueue.client.trials import TRIALS
from daskqueue.wire.link import RemoteFailure
from daskqueue_core.batch import Batch, Keep, Kind

LIMIT = 60


class Failing:
    """A pool's way to its queues, on which operations fail as told."""

    def __init__(self, pool: QueuePool) -> None:
        connection = pool._connection
        self.link = connection.session.link
        self.errors: dict[str, Iterator[Exception]] = {}
        connection.collector._link = connection.submitter._link = self  # type: ignore[assignment]

    def fail(self, op: str, errors: Iterable[Exception]) -> None:
        """The next calls of `op` end with these."""
        self.errors[op] = iter(errors)

    async def call(self, route: Any, index: int, op: str, **arguments: Any) -> Any:
        """As `Link.call`."""
        for error in self.errors.get(op, ()):
            raise error
        return await self.link.call(route, index, op, **arguments)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daskqueue.client.trials.PAUSE_S", 0.001)


@pytest.fixture
def pool(client: Client) -> Iterator[QueuePool]:
    """One queue, and a consumer on each worker."""
    pool = QueuePool(client)
    ConsumerPool(client, pool).start()
    yield pool
    pool.shutdown(cancel_futures=True)


@pytest.fixture
def failing(pool: QueuePool) -> Failing:
    """Between the pool and its queue, from the next call on."""
    return Failing(pool)


def few() -> list[Exception]:
    """As many errors in a row as are borne, of the kinds that there are."""
    return [RemoteFailure("it failed", "KeyError"), ValueError("what nobody thought of")] * (TRIALS // 2)


def pools(dask_scheduler: Any) -> list[str]:
    """Those that the directory knows."""
    return list(dask_scheduler.plugins["daskqueue"].directory.pools)


def test_a_poll_that_fails_a_few_times(pool: QueuePool, failing: Failing, gate: Any) -> None:
    """It is asked again, and what ends meanwhile is heard of."""
    first, second = pool.submit(gate, 1), pool.submit(gate, 2)
    failing.fail("poll", few())
    gate.open()
    assert first.result(LIMIT) == 1
    assert second.result(LIMIT) == 2
    assert pool.submit(gate, 3).result(LIMIT) == 3
    assert pool._connection.error is None


def test_a_poll_that_always_fails(
    client: Client, pool: QueuePool, failing: Failing, gate: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Futures end with what the queue has said, which is no loss; the pool is over, and shut down all the same."""
    failing.fail("poll", itertools.repeat(RemoteFailure("the queue failed at poll: KeyError", "KeyError")))
    futures = [pool.submit(gate, n) for n in range(20)]
    with caplog.at_level(logging.ERROR, "daskqueue"):
        pool._connection.session.run(poke(pool))
        error = futures[-1].exception(LIMIT)
    assert isinstance(error, DaskQueueError)
    assert not isinstance(error, QueueLost)
    assert "failed at poll" in str(error)
    assert "hears no more" in caplog.text
    with pytest.raises(PoolClosed, match="failed at poll"):
        pool.submit(gate, 1)
    assert pool.name in client.run_on_scheduler(pools)
    pool.shutdown()
    assert pool.name not in client.run_on_scheduler(pools)
    pool.shutdown()


async def poke(pool: QueuePool) -> None:
    """Begin another poll; the one under way may wait for long."""
    pool._connection.collector.close()
    pool._connection.collector._over = False
    pool._connection.collector.start()


def test_an_outcome_that_nobody_can_take(
    pool: QueuePool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of ours: the futures end, and the log has the traceback."""

    def take(_: object) -> None:
        raise KeyError("a fault of ours")

    monkeypatch.setattr(pool._connection.finder, "take", take)
    with caplog.at_level(logging.ERROR, "daskqueue"):
        error = pool.submit(abs, -1).exception(LIMIT)
    assert isinstance(error, DaskQueueError)
    assert "a fault of ours" in str(error)
    assert "Traceback" in caplog.text


def test_a_put_that_fails_a_few_times(pool: QueuePool, failing: Failing, oracle: Any) -> None:
    """It is put again: once."""
    failing.fail("admit_alone", few()[:1])
    failing.fail("admit", few()[1:])
    futures = [pool.submit(oracle.mark, n) for n in range(50)]
    for future in futures:
        future.result(LIMIT)
    assert sorted(oracle.lines(), key=int) == [str(n) for n in range(50)]


def test_a_put_that_is_refused(pool: QueuePool, gate: Any) -> None:
    """By the queue itself, each time: it ends with that, what came beside it runs, and the pool goes on."""
    connection = pool._connection
    before = pool.submit(gate, 1)
    pool.flush()  # the first put of all goes alone
    bad = TaskBatch(connection)
    first = connection.session.numbers(2)
    kept = {"client": connection.client_id, "keep": Keep.KEEP, "kind": Kind.CALL}
    connection.submitter.send(Batch(2, b"", first=first, priority=1 << 20, **kept), bad, bad.extend(2, first))
    after = [pool.options(priority=n).submit(gate, n) for n in range(5)]  # a put each
    assert {type(error) for error in bad.failures(LIMIT).values()} == {RemoteFailure}
    gate.open()
    assert before.result(LIMIT) == 1
    assert [future.result(LIMIT) for future in after] == list(range(5))
    pool.join(timeout=LIMIT)


def test_a_refused_item(pool: QueuePool, failing: Failing) -> None:
    """Who puts it hears of it, and the next one is taken."""
    failing.fail("admit", [RemoteFailure("it failed", "KeyError")] * TRIALS)
    with pytest.raises(RemoteFailure):
        pool.put("x")
    pool.put("y")
    assert sum(queue.puts for queue in pool.stats()) == 1
