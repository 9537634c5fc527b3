"""Cancelling, by the rule that True means: it will not run, and no outcome will come."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from daskqueue import ConsumerPool, QueueExecutor, QueuePool
from daskqueue_core.errors import PoolClosed

LIMIT = 60


@pytest.fixture
def pool(client: Client) -> Iterator[QueuePool]:
    """A pool that nobody serves yet."""
    pool = QueuePool(client)
    yield pool
    pool.shutdown(cancel_futures=True)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file for which tasks wait; there at the end."""
    path = tmp_path / "gate"
    yield path
    path.touch()


def run_all(client: Client, pool: QueuePool, **options: Any) -> None:
    """Let everything that is left be done."""
    consumers = ConsumerPool(client, pool, **options)
    consumers.start()
    consumers.join(timeout=LIMIT)
    consumers.cancel()


def pass_gate(path: Path) -> None:
    """Wait for a file."""
    pause = threading.Event()
    while not path.exists():
        pause.wait(0.005)


def on_loop(client: Client, call: Callable[[], Any]) -> Any:
    """What `call` returns on the client's event loop; a coroutine is awaited there."""

    async def there() -> Any:
        value = call()
        return await value if asyncio.iscoroutine(value) else value

    return asyncio.run_coroutine_threadsafe(there(), client.loop.asyncio_loop).result(LIMIT)


# ---------------------------------------------------------------------------------------------------- not delivered


def test_not_delivered(client: Client, pool: QueuePool, oracle: Any) -> None:
    """True within one round trip (it would give up long before the next poll), and never runs; its neighbours do."""
    futures = [pool.submit(oracle.mark, n) for n in range(10)]
    batch = pool.submit_many(oracle.mark, range(10, 2010))
    pool.flush()
    assert futures[3].cancel()
    assert batch[5].cancel()
    assert futures[3].cancelled()
    assert batch[5].cancelled()
    assert sum(queue.cancelled for queue in pool.stats()) in (0, 2)
    run_all(client, pool)
    assert sorted(map(int, oracle.lines())) == [n for n in range(2010) if n not in (3, 15)]
    assert [future.cancelled() for future in futures] == [n == 3 for n in range(10)]
    assert batch.counts() == (0, 1999, 1)


def test_cancelled_twice(pool: QueuePool, eventually: Callable[..., Any]) -> None:
    """True again; the outcome came once."""
    future = pool.submit(abs, 1)
    called: list[Any] = []
    future.add_done_callback(called.append)
    assert future.cancel()
    assert future.cancel()
    assert on_loop(pool._session.client, future.cancel)
    cf.wait([future], LIMIT)
    assert pool.submit(abs, 2).cancel()
    eventually(lambda: called)
    assert called == [future]


def test_in_the_clients_buffer(client: Client, pool: QueuePool, oracle: Any) -> None:
    """Without asking anybody: here the event loop stands still."""
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        go_on.wait(LIMIT)

    client.loop.add_callback(hold)
    assert held.wait(LIMIT)
    try:
        futures = [pool.submit(oracle.mark, n) for n in range(5)]
        assert futures[2].cancel()
        with pytest.raises(cf.CancelledError):
            futures[2].result(0)
    finally:
        go_on.set()
    run_all(client, pool)
    assert sorted(oracle.lines()) == ["0", "1", "3", "4"]


def test_while_another_thread_submits(client: Client, pool: QueuePool) -> None:
    """It does not wait for what is submitted later: that would take until it gives up, and says False."""
    over = threading.Event()

    def submit() -> None:
        while not over.wait(0.0002):
            pool.submit(abs, 1)

    first = [pool.submit(abs, n) for n in range(20)]
    thread = threading.Thread(target=submit)
    thread.start()
    try:
        for future in first:
            assert future.cancel()
    finally:
        over.set()
        thread.join(LIMIT)


# --------------------------------------------------------------------------------------------------------- running


def test_running(client: Client, pool: QueuePool, oracle: Any, gate: Path, eventually: Callable[..., Any]) -> None:
    """False, however often; it ends with its value."""

    def task() -> str:
        oracle.mark("runs")
        pass_gate(gate)
        return "done"

    ConsumerPool(client, pool, n_consumers=1, concurrency=1).start()
    future = pool.submit(task)
    eventually(oracle.lines)
    assert not future.cancel()
    assert not future.cancel()
    assert not future.cancelled()
    assert not on_loop(client, future.cancel_async)
    gate.touch()
    assert future.result(LIMIT) == "done"
    assert oracle.lines() == ["runs"]


def test_finished(client: Client, pool: QueuePool) -> None:
    """False: its outcome stays, of a failure too."""
    futures = [pool.submit(abs, -1), pool.submit(abs, "x"), pool.submit_many(abs, [-3])[0]]
    run_all(client, pool)
    cf.wait(futures, LIMIT)
    assert [future.cancel() for future in futures] == [False] * 3
    assert [on_loop(client, future.cancel_async) for future in futures] == [False] * 3
    assert (futures[0].result(0), futures[2].result(0)) == (1, 3)
    assert isinstance(futures[1].exception(0), TypeError)


@pytest.mark.usefixtures("unpaced")
def test_in_the_unstarted_tail_of_a_lease(
    client: Client, pool: QueuePool, oracle: Any, gate: Path, eventually: Callable[..., Any]
) -> None:
    """False, since it may have begun; then its owner gives it up, within seconds."""

    def task(n: int) -> int:
        if n >= 0:
            oracle.mark(n)
            pass_gate(gate)
        return n

    ConsumerPool(client, pool, n_consumers=1, concurrency=1).start()
    assert pool.submit(task, -1).result(LIMIT) == -1, "timed, from now on"
    batch = pool.submit_many(task, range(50))
    eventually(lambda: oracle.lines() == ["0"])
    eventually(lambda: pool.stats()[0].delivered == 50)
    began = time.monotonic()
    chosen = batch[20:30]
    answers = [future.cancel() for future in chosen]
    assert not answers[0], "later ones may come after the heartbeat that gives it up"
    assert not cf.wait(chosen, LIMIT).not_done
    assert time.monotonic() - began < 20.0, "the next heartbeat asks for it back"
    assert all(future.cancelled() for future in chosen)
    gate.touch()
    assert batch.wait(LIMIT)
    assert batch.counts() == (0, 40, 10)
    assert sorted(map(int, oracle.lines())) == [*range(20), *range(30, 50)]


# ------------------------------------------------------------------------------------------------ on the event loop


def test_on_the_event_loop(client: Client, pool: QueuePool, oracle: Any) -> None:
    """cancel asks and returns False at once; cancel_async gives the answer."""
    futures = [pool.submit(oracle.mark, n) for n in range(3)]
    batch = pool.submit_many(oracle.mark, range(3, 10))
    pool.flush()
    assert on_loop(client, futures[0].cancel) is False
    assert not cf.wait(futures[:1], LIMIT).not_done
    assert futures[0].cancelled()
    assert on_loop(client, futures[1].cancel_async) is True
    assert futures[1].cancelled()
    assert on_loop(client, batch.cancel) == 0
    assert batch.wait(LIMIT)
    run_all(client, pool)
    assert oracle.lines() == ["2"]


# --------------------------------------------------------------------------------------------------------- batches


def test_a_batch(client: Client, pool: QueuePool, oracle: Any, gate: Path, eventually: Callable[..., Any]) -> None:
    """How many ended by it at once; what runs goes on, and another batch is not concerned."""

    def task(n: int) -> int:
        oracle.mark(n)
        pass_gate(gate)
        return n

    ConsumerPool(client, pool, n_consumers=1, concurrency=1).start()
    batch = pool.submit_many(task, range(5000))
    other = pool.submit_many(task, range(5000, 5003))
    eventually(oracle.lines)
    assert batch.cancel() == 4999
    assert batch.counts() == (1, 0, 4999)
    assert batch.cancel() == 0
    gate.touch()
    assert batch.wait(LIMIT)
    assert batch[0].result(0) == 0
    assert batch.counts() == (0, 1, 4999)
    with pytest.raises(cf.CancelledError):
        batch.results()
    assert len(batch.failures()) == 4999
    assert all(isinstance(error, cf.CancelledError) for error in batch.failures().values())
    assert other.results(LIMIT) == [5000, 5001, 5002]
    assert sorted(map(int, oracle.lines())) == [0, 5000, 5001, 5002]
    assert batch.cancel() == 0


def test_a_batch_over_several_queues(client: Client, oracle: Any) -> None:
    """All of it, wherever it lies."""
    with QueuePool(client, 3) as pool:
        batch = pool.submit_many(oracle.mark, range(10_000))
        assert batch.cancel() == 10_000
        assert batch.wait(LIMIT)
        run_all(client, pool)
    assert oracle.lines() == []


def test_part_of_a_batch(client: Client, pool: QueuePool, oracle: Any) -> None:
    """One by one: ends and middle of the blocks it travelled in."""
    batch = pool.submit_many(oracle.mark, range(3000))
    chosen = {0, 1, 15, 16, 17, 999, 1000, 1500, 2999}
    assert all(batch[index].cancel() for index in chosen)
    assert all(batch[index].cancelled() for index in chosen)
    run_all(client, pool)
    assert batch.wait(LIMIT)
    assert set(batch.failures()) == chosen
    assert sorted(map(int, oracle.lines())) == sorted(set(range(3000)) - chosen)


# ----------------------------------------------------------------------------------------------------- full queues


def test_in_a_full_queue(client: Client, oracle: Any) -> None:
    """What has not reached the queue is cancelled although the queue takes nothing: nobody serves it."""
    pool = QueuePool(client, maxsize=10)
    try:
        batch = on_loop(client, lambda: pool.submit_many(oracle.mark, range(1000)))  # there nothing blocks
        future = on_loop(client, lambda: pool.submit(oracle.mark, 1000))
        began = time.monotonic()
        assert future.cancel()
        assert batch[995].cancel()
        assert batch.cancel() == 999
        assert batch.wait(LIMIT)
        assert time.monotonic() - began < 15.0
        run_all(client, pool)
        assert oracle.lines() == []
        assert pool.stats()[0].nbytes == 0
    finally:
        pool.shutdown(cancel_futures=True)


def test_the_end_of_a_full_pool(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """shutdown(cancel_futures=True) returns without giving anything up, and every future ends."""
    monkeypatch.setattr("daskqueue.client.cancelling.CANCEL_S", LIMIT)
    pool = QueuePool(client, maxsize=10)
    batch = on_loop(client, lambda: pool.submit_many(abs, range(1000)))
    single = on_loop(client, lambda: pool.submit(abs, 1))
    with cf.ThreadPoolExecutor(3) as threads:
        waiting = [
            threads.submit(pool.submit, abs, 1),
            threads.submit(pool.submit_many, abs, range(1000)),
            threads.submit(pool.put, 1),
        ]
        began = time.monotonic()
        pool.shutdown(cancel_futures=True)
        assert time.monotonic() - began < LIMIT / 2
        for call in waiting[:2]:
            assert isinstance(call.exception(LIMIT), PoolClosed)
        # what was cancelled made room: the item may just have got in
        assert isinstance(waiting[2].exception(LIMIT), (PoolClosed, type(None)))
    assert batch.wait(LIMIT)
    assert batch.counts() == (0, 0, 1000)
    assert single.cancelled()


# ---------------------------------------------------------------------------------------------------- the executor


def test_shutdown_of_the_executor(client: Client, oracle: Any, gate: Path, eventually: Callable[..., Any]) -> None:
    """cancel_futures: what has not begun is cancelled and never runs, what runs ends as it should."""

    def task(n: int) -> int:
        oracle.mark(n)
        pass_gate(gate)
        return n

    executor = QueueExecutor(client, max_workers=1)
    futures = [executor.submit(task, n) for n in range(100)]
    eventually(oracle.lines)
    ending = threading.Thread(target=executor.shutdown, kwargs={"cancel_futures": True})
    ending.start()
    assert not cf.wait(futures[1:], LIMIT).not_done
    assert all(future.cancelled() for future in futures[1:])
    assert not futures[0].done()
    gate.touch()
    ending.join(LIMIT)
    assert futures[0].result(0) == 0
    assert oracle.lines() == ["0"]
