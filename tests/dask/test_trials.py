"""Queues that answer with errors: a few are nothing, what fails again and again ends, and never silently.

What a host would answer is said by a link of ours between the pool and its real one.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest
from distributed import Client

from daskqueue import ConsumerPool, DaskQueueError, PoolClosed, QueueLost, QueuePool
from daskqueue.client.task_batch import TaskBatch
from daskqueue.client.trials import TRIALS
from daskqueue.wire.link import RemoteFailure
from daskqueue_core.batch import Batch, Keep, Kind
from daskqueue_core.protocols import Full

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


class Overtaking:
    """Between a pool and its queue: of the puts from now on, the first is answered after the second was refused."""

    def __init__(self, pool: QueuePool, refuse: Callable[[], Any], times: int, error: Exception | None) -> None:
        self.submitter = pool._connection.submitter
        self.link = self.submitter._link
        self.refuse, self.times, self.error = refuse, times, error
        self.overtaken = asyncio.Event()
        self.first: int | None = None
        self.submitter._link = self  # type: ignore[assignment]

    async def call(self, route: Any, index: int, op: str, **arguments: Any) -> Any:
        """As `Link.call`; the first put comes to the queue, or fails with `error`."""
        if self.first is None:
            self.first = arguments["number"]
            answer = None if self.error else await self.link.call(route, index, op, **arguments)
            await self.overtaken.wait()
            if self.error:
                raise self.error
            return answer
        if arguments["number"] != self.first and self.times:
            self.times -= 1
            if not self.times:
                self.overtaken.set()
            return self.refuse()
        return await self.link.call(route, index, op, **arguments)


def full() -> Full:
    """What a queue answers to a put that came after one it has refused."""
    return Full(0)


def fail() -> Full:
    """A queue that fails at it, too."""
    raise RemoteFailure("it failed", "OSError")


@pytest.mark.parametrize(
    ("on_full", "refuse", "times", "error"),
    [
        pytest.param("raise", full, 1, RemoteFailure("it failed", "OSError"), id="refused-after-a-failure"),
        pytest.param("raise", full, 1, None, id="full-before-accepted"),
        pytest.param("wait", fail, TRIALS, RemoteFailure("it failed", "OSError"), id="failed-for-good-first"),
    ],
)
def test_a_put_is_not_refused_before_the_one_before_it(
    client: Client,
    eventually: Callable[..., Any],
    on_full: str,
    refuse: Callable[[], Any],
    times: int,
    error: Exception | None,
) -> None:
    """That one is tried again, and then it is asked for again: both are done, and nothing is left in the buffer."""
    with QueuePool(client, on_full=on_full, maxsize=100) as pool:
        ConsumerPool(client, pool).start()
        assert pool.submit(abs, -1).result(LIMIT) == 1  # the first put of all goes alone
        link = Overtaking(pool, refuse, times, error)
        first = pool.submit(abs, -2)
        eventually(lambda: link.first is not None)
        second = pool.submit(abs, -3)
        assert (first.result(LIMIT), second.result(LIMIT)) == (2, 3)
        eventually(lambda: pool._connection.submitter._buffered == 0)


def test_puts_that_fail_for_good_one_before_the_other(client: Client, eventually: Callable[..., Any]) -> None:
    """The first ends with its error, and the other is put again."""
    with QueuePool(client) as pool:
        ConsumerPool(client, pool).start()
        assert pool.submit(abs, -1).result(LIMIT) == 1
        failing = Failing(pool)
        link = Overtaking(pool, fail, TRIALS, RemoteFailure("it failed", "OSError"))
        failing.fail("admit", [RemoteFailure("it failed again", "OSError")] * (TRIALS - 1))
        first = pool.submit(abs, -2)
        eventually(lambda: link.first is not None)
        second = pool.submit(abs, -3)
        assert "it failed again" in str(first.exception(LIMIT))
        assert second.result(LIMIT) == 3
        eventually(lambda: pool._connection.submitter._buffered == 0)


# -- the wait of a shutdown


def fail_first(monkeypatch: pytest.MonkeyPatch, pool: QueuePool, name: str, errors: Iterable[Exception]) -> list[bool]:
    """The next calls of the connection's `name` end with these; what is returned is not empty once one went through."""
    honest, left, through = getattr(pool._connection, name), iter(errors), []

    async def call(*arguments: Any) -> Any:
        for error in left:
            raise error
        answer = honest(*arguments)
        through.append(True)
        return await answer

    monkeypatch.setattr(pool._connection, name, call)
    return through


@pytest.mark.parametrize(
    ("name", "errors"),
    [
        pytest.param("stats", [RemoteFailure("it failed")] * 2 * TRIALS, id="stats"),
        pytest.param("served", [OSError("no connection")] * 2 * TRIALS, id="scheduler-away"),
        pytest.param("served", [DaskQueueError("it failed")] * (TRIALS - 1), id="scheduler-fails"),
        pytest.param("join", [RemoteFailure("it failed")] * (TRIALS - 1), id="join"),
    ],
)
def test_a_shutdown_waits_also_if_looking_fails(
    client: Client,
    gate: Any,
    eventually: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    errors: list[Exception],
) -> None:
    """It looks again, and cancels nothing."""
    monkeypatch.setattr("daskqueue.client.finishing.LOOK_S", 0.01)
    monkeypatch.setattr("daskqueue.client.finishing.ASK_AGAIN_S", 0.01)
    pool = QueuePool(client)
    ConsumerPool(client, pool).start()
    futures = [pool.submit(gate, n) for n in range(8)]
    through = fail_first(monkeypatch, pool, name, errors)
    pool.shutdown(wait=False)
    eventually(lambda: through)
    assert not any(future.done() for future in futures)
    gate.open()
    assert [future.result(LIMIT) for future in futures] == list(range(8))


def test_a_look_that_fails_while_a_shutdown_waits(
    client: Client, gate: Any, eventually: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler is away for a while, long after the wait has begun."""
    monkeypatch.setattr("daskqueue.client.finishing.LOOK_S", 0.01)
    pool = QueuePool(client)
    ConsumerPool(client, pool).start()
    futures = [pool.submit(gate, n) for n in range(8)]
    before = fail_first(monkeypatch, pool, "served", [])
    pool.shutdown(wait=False)
    eventually(lambda: len(before) > 2)
    after = fail_first(monkeypatch, pool, "served", [OSError("no connection"), DaskQueueError("it failed")] * TRIALS)
    eventually(lambda: after)
    gate.open()
    assert [future.result(LIMIT) for future in futures] == list(range(8))


@pytest.mark.parametrize("name", ["join", "served"])
def test_a_shutdown_does_not_wait_for_what_always_fails(
    client: Client, gate: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It ends the pool, and with it the futures."""
    pool = QueuePool(client)
    ConsumerPool(client, pool).start()
    future = pool.submit(gate, 1)
    fail_first(monkeypatch, pool, name, itertools.repeat(RemoteFailure("it failed")))
    pool.shutdown()
    with pytest.raises(CancelledError):
        future.result(LIMIT)
    assert pool.name not in client.run_on_scheduler(pools)


def test_a_pool_that_is_over_ends_a_wait_that_looks_in_vain(
    client: Client, gate: Any, eventually: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another client has shut it down, say."""
    monkeypatch.setattr("daskqueue.client.finishing.LOOK_S", 0.01)
    pool = QueuePool(client)
    ConsumerPool(client, pool).start()
    future = pool.submit(gate, 1)
    asked = []

    def errors() -> Iterator[Exception]:
        while True:
            asked.append(True)
            yield RemoteFailure("it failed")

    fail_first(monkeypatch, pool, "stats", errors())
    shutting = threading.Thread(target=pool.shutdown, daemon=True)
    shutting.start()
    eventually(lambda: len(asked) > 1)
    pool._connection.session.soon(pool._connection.over, PoolClosed("it was shut down"))
    shutting.join(LIMIT)
    assert not shutting.is_alive()
    assert isinstance(future.exception(LIMIT), QueueLost)
