"""Full queues: puts wait or raise, nothing is lost, and the order holds."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import itertools
import operator
import threading
import time
from collections.abc import Callable, Iterator
from queue import Full
from typing import Any

import pytest
from distributed import Client, Worker
from distributed.core import Status

from daskqueue import ConsumerBaseClass, ConsumerPool, QueuePool
from daskqueue.worker.queue_actor import QueueActor
from daskqueue_core.batch import Batch
from daskqueue_core.errors import PoolClosed
from daskqueue_core.queue import Accepted, TransientQueue
from daskqueue_core.queue import Full as NoRoom

LIMIT = 60
LONG = 60.0


@pytest.fixture
def make(client: Client) -> Iterator[Callable[..., QueuePool]]:
    """`make(maxsize=...)`: a pool that nobody serves yet."""
    pools: list[QueuePool] = []

    def make(**options: Any) -> QueuePool:
        pools.append(QueuePool(client, **options))
        return pools[-1]

    yield make
    for pool in pools:
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue's answer that there is no room may take long, as it may on a busy machine: it is Full all the same."""
    monkeypatch.setattr("daskqueue.client.pool_connection.GRACE_S", LIMIT)
    monkeypatch.setattr("daskqueue.client.pool_connection.ANSWER_S", LIMIT)


@pytest.fixture
def threads() -> Iterator[cf.ThreadPoolExecutor]:
    """For calls that wait."""
    with cf.ThreadPoolExecutor(8) as threads:
        yield threads


def still_waits(*calls: cf.Future[Any]) -> bool:
    """Whether calls in other threads have not come back after a moment."""
    return not cf.wait(calls, 0.15, return_when=cf.FIRST_COMPLETED).done


def marking(oracle: Any) -> type[ConsumerBaseClass]:
    """A consumer class that writes down what it gets."""

    class Marking(ConsumerBaseClass):
        def process_item(self, item: Any) -> None:
            oracle.mark(item)

    return Marking


def serve(client: Client, pool: QueuePool, consumer: Any = None, **options: Any) -> None:
    """Let its work be done from now on."""
    (
        ConsumerPool(client, pool, **options) if consumer is None else ConsumerPool(client, pool, consumer, **options)
    ).start()


def passing(n: int) -> int:
    """A task that is not over at once."""
    threading.Event().wait(0.001)
    return n


# ------------------------------------------------------------------------------------------------------------ items


def test_put_waits(client: Client, make: Callable[..., QueuePool], threads: cf.ThreadPoolExecutor, oracle: Any) -> None:
    """Until there is room; what was put before stays."""
    pool = make(maxsize=3)
    pool.put_many("abc")
    call = threads.submit(pool.put, "d")
    assert still_waits(call)
    assert pool.stats()[0].ready == 3
    serve(client, pool, marking(oracle))
    call.result(LIMIT)
    pool.join(timeout=LIMIT)
    assert sorted(oracle.lines()) == list("abcd")


@pytest.mark.parametrize(
    "options", [{"block": False}, {"timeout": 0.1}, {"timeout": 0}, {"block": False, "timeout": 50}]
)
@pytest.mark.usefixtures("patient")
def test_put_gives_up(make: Callable[..., QueuePool], options: dict[str, Any]) -> None:
    """queue.Full, in time; nothing of that put is in the queue, and there is room for others later."""
    pool = make(maxsize=3)
    pool.put("a", **options)
    pool.put_many("bc", **options)
    began = time.monotonic()
    with pytest.raises(Full, match=f"queue 0 of pool '{pool.name}' is full"):
        pool.put("d", **options)
    assert time.monotonic() - began < 10.0
    assert pool.stats()[0].puts == 3


def test_put_of_more_than_fits(
    client: Client, make: Callable[..., QueuePool], threads: cf.ThreadPoolExecutor, oracle: Any
) -> None:
    """It is cut: what fits is put, and the rest waits, or is refused."""
    pool = make(maxsize=10)
    with pytest.raises(Full):
        pool.put_many(range(25), block=False)
    assert pool.stats()[0].puts == 10
    call = threads.submit(pool.put_many, range(25, 60))
    assert still_waits(call)
    serve(client, pool, marking(oracle), n_consumers=1, concurrency=1)
    call.result(LIMIT)
    pool.join(timeout=LIMIT)
    assert oracle.lines() == [str(n) for n in (*range(10), *range(25, 60))]


def test_put_timeout_with_room_in_time(
    client: Client, make: Callable[..., QueuePool], threads: cf.ThreadPoolExecutor, oracle: Any
) -> None:
    """A put that waits with a timeout is accepted when there is room."""
    pool = make(maxsize=2)
    pool.put_many("ab")
    call = threads.submit(pool.put, "c", timeout=LIMIT)
    assert still_waits(call)
    serve(client, pool, marking(oracle))
    call.result(LIMIT)
    pool.join(timeout=LIMIT)
    assert sorted(oracle.lines()) == list("abc")


@pytest.mark.usefixtures("patient")
def test_put_when_the_pool_raises(make: Callable[..., QueuePool]) -> None:
    """on_full="raise": as block=False, whatever is said."""
    pool = make(maxsize=2, on_full="raise")
    pool.put_many("ab")
    for options in ({}, {"block": True}, {"timeout": 0.05}):
        with pytest.raises(Full):
            pool.put("c", **options)
    assert pool.stats()[0].puts == 2


# ------------------------------------------------------------------------------------------------------------ calls


def test_submit_waits(client: Client, make: Callable[..., QueuePool], threads: cf.ThreadPoolExecutor) -> None:
    """A submitter that is faster than the consumers is held back, by a few times the size of the queue."""
    pool = make(maxsize=10)
    submitted = itertools.count()
    call = threads.submit(lambda: [(pool.submit(passing, n), next(submitted))[0] for n in range(500)])
    assert still_waits(call)
    assert pool.stats()[0].puts <= 10
    assert next(submitted) <= 30
    serve(client, pool)
    assert [future.result(LIMIT) for future in call.result(LIMIT)] == list(range(500))


@pytest.mark.parametrize("maxsize", [1, 10])
@pytest.mark.parametrize("n_queues", [1, 3])
def test_everything_through_a_small_queue(
    client: Client, make: Callable[..., QueuePool], maxsize: int, n_queues: int
) -> None:
    """submit, submit_many, batch_submit and both maps finish, and are done once."""
    pool = make(maxsize=maxsize, n_queues=n_queues)
    serve(client, pool)
    futures = [pool.submit(operator.neg, n) for n in range(50)]
    batch = pool.submit_many(operator.neg, range(100))
    calls = pool.batch_submit([(operator.add, n, 1) for n in range(50)])
    assert list(pool.map(operator.neg, range(100), timeout=LIMIT)) == [-n for n in range(100)]
    endless = pool.map(operator.neg, itertools.count(), buffersize=50, timeout=LIMIT)
    assert list(itertools.islice(endless, 100)) == [-n for n in range(100)]
    endless.close()
    assert [future.result(LIMIT) for future in futures] == [-n for n in range(50)]
    assert batch.results(LIMIT) == [-n for n in range(100)]
    assert calls.results(LIMIT) == list(range(1, 51))
    pool.join(timeout=LIMIT)


def test_a_batch_is_cut(
    client: Client, make: Callable[..., QueuePool], threads: cf.ThreadPoolExecutor, eventually: Callable[..., Any]
) -> None:
    """No more than maxsize are ever in the queue."""
    pool = make(maxsize=7)
    call = threads.submit(pool.submit_many, passing, range(200))
    eventually(lambda: pool.stats()[0].puts == 7)
    assert still_waits(call)
    assert pool.stats()[0].puts == 7
    serve(client, pool)
    while not call.done():
        [queue] = pool.stats()
        assert queue.puts - queue.finished <= 7
    assert call.result(LIMIT).results(LIMIT) == list(range(200))


@pytest.mark.usefixtures("patient")
def test_bytes(
    client: Client, make: Callable[..., QueuePool], threads: cf.ThreadPoolExecutor, eventually: Callable[..., Any]
) -> None:
    """max_bytes: submits and puts wait likewise, and one that is larger than that goes through an empty queue."""
    pool = make(max_bytes="4 MiB")
    blobs = [bytes([n]) * 100_000 for n in range(100)]
    call = threads.submit(pool.submit_many, len, [*blobs, b"x" * 6_000_000])
    eventually(lambda: pool.stats()[0].nbytes > 1_000_000)
    with pytest.raises(TimeoutError):
        pool.join(timeout=0.2)
    assert 1_000_000 < pool.stats()[0].nbytes <= 4 << 20
    with pytest.raises(Full):
        pool.put(b"x" * 4_000_000, timeout=0.05)
    serve(client, pool)
    assert call.result(LIMIT).results(LIMIT) == [100_000] * 100 + [6_000_000]
    assert [future.result(LIMIT) for future in [pool.submit(len, blob) for blob in blobs]] == [100_000] * 100
    assert pool.stats()[0].nbytes == 0


def test_calls_are_refused(client: Client, make: Callable[..., QueuePool], eventually: Callable[..., Any]) -> None:
    """on_full="raise": what does not fit ends with queue.Full, the others are done; nothing hangs."""
    pool = make(maxsize=10, on_full="raise")
    futures = [pool.submit(operator.neg, n) for n in range(8)]
    pool.flush()
    batch = pool.submit_many(operator.neg, range(100))
    late = [pool.submit(operator.neg, n) for n in range(50)]
    everything = [*futures, *batch[:], *late]
    eventually(lambda: sum(future.done() for future in everything) >= 100)
    serve(client, pool)
    assert not cf.wait(everything, LIMIT).not_done
    refused = [future for future in everything if isinstance(future.exception(), Full)]
    assert all(future.exception() is None for future in everything if future not in refused)
    assert [future.result(0) for future in futures] == [-n for n in range(8)]
    assert len(refused) >= 100
    assert f"pool '{pool.name}' is full" in str(refused[0].exception())
    assert pool.stats()[0].puts == len(everything) - len(refused)
    assert [pool.submit(operator.neg, n).result(LIMIT) for n in range(30)] == [-n for n in range(30)]
    with pytest.raises(Full):
        list(pool.map(passing, range(10_000), timeout=LIMIT))
    pool.join(timeout=LIMIT)


# ------------------------------------------------------------------------------------------------------------ order


def test_first_in_first_out(
    client: Client, make: Callable[..., QueuePool], threads: cf.ThreadPoolExecutor, oracle: Any
) -> None:
    """Through a full queue too, of items and of calls."""
    pool = make(maxsize=5)
    call = threads.submit(pool.put_many, range(300))
    assert still_waits(call)
    serve(client, pool, marking(oracle), n_consumers=1, concurrency=1)
    call.result(LIMIT)
    pool.join(timeout=LIMIT)
    assert oracle.lines() == [str(n) for n in range(300)]
    other = make(maxsize=5)
    calls = threads.submit(lambda: [other.submit(oracle.mark, n) for n in range(300, 500)])
    assert still_waits(calls)
    serve(client, other, n_consumers=1, concurrency=1)
    cf.wait(calls.result(LIMIT), LIMIT)
    assert oracle.lines() == [str(n) for n in range(500)]


def test_two_clients(client: Client, cluster: Any, new_client: Callable[..., Client], oracle: Any) -> None:
    """Both come through one full queue, each in its order; none is starved by the other."""
    pool = QueuePool(client, name="narrow", maxsize=4)
    theirs = QueuePool.attach(new_client(cluster), "narrow")
    with cf.ThreadPoolExecutor(2) as threads:
        calls = [
            threads.submit(lambda: [pool.submit(oracle.mark, f"a{n}") for n in range(150)]),
            threads.submit(lambda: theirs.submit_many(oracle.mark, [f"b{n}" for n in range(150)])),
        ]
        assert still_waits(*calls)
        serve(client, pool, n_consumers=1, concurrency=1)
        cf.wait(calls[0].result(LIMIT), LIMIT)
        assert calls[1].result(LIMIT).wait(LIMIT)
    lines = oracle.lines()
    assert [line for line in lines if line[0] == "a"] == [f"a{n}" for n in range(150)]
    assert [line for line in lines if line[0] == "b"] == [f"b{n}" for n in range(150)]
    pool.shutdown()


# ------------------------------------------------------------------------------------------------- join and the end


def test_join_while_it_is_full(client: Client, make: Callable[..., QueuePool], threads: cf.ThreadPoolExecutor) -> None:
    """What waits for room counts as not done."""
    pool = make(maxsize=3)
    call = threads.submit(pool.submit_many, passing, range(60))
    with pytest.raises(TimeoutError):
        pool.join(timeout=0.1)
    serve(client, pool)
    assert call.result(LIMIT).results(LIMIT) == list(range(60))
    pool.join(timeout=LIMIT)
    [queue] = pool.stats()
    assert (queue.puts, queue.finished) == (60, 60)


@pytest.mark.parametrize("cancel_futures", [True, False])
def test_shutdown_while_puts_wait(
    make: Callable[..., QueuePool], threads: cf.ThreadPoolExecutor, cancel_futures: bool
) -> None:
    """Nobody serves it: who waits is told that the pool is closed."""
    pool = make(maxsize=2)
    pool.put_many("ab")
    calls = [threads.submit(pool.put, n) for n in range(3)]
    calls.append(threads.submit(pool.put, "timed", timeout=LIMIT))
    calls.append(threads.submit(pool.submit_many, abs, range(100)))
    assert still_waits(*calls)
    began = time.monotonic()
    pool.shutdown(cancel_futures=cancel_futures)
    assert time.monotonic() - began < 8.0
    for call in calls:
        assert isinstance(call.exception(LIMIT), (PoolClosed, Full)), call


def test_shutdown_waits_for_what_waits_for_room(
    client: Client, make: Callable[..., QueuePool], threads: cf.ThreadPoolExecutor
) -> None:
    """What was submitted before is done, although it was not in the queue yet."""
    pool = make(maxsize=5)
    serve(client, pool)
    batch = pool.submit_many(passing, range(300))
    pool.shutdown()
    assert batch.results(0) == list(range(300))


# --------------------------------------------------------------------------------------------------- interleavings


def test_16_a_callback_submits_into_a_full_queue(client: Client, make: Callable[..., QueuePool]) -> None:
    """A done-callback submits the next task with the window full: no deadlock."""
    pool = make(maxsize=1)
    serve(client, pool)
    ended = threading.Event()
    values: list[int] = []

    def follow(future: cf.Future[int]) -> None:
        values.append(future.result())
        if len(values) < 40:
            pool.submit(passing, len(values)).add_done_callback(follow)
        else:
            ended.set()

    for n in range(4):
        pool.submit(passing, n).add_done_callback(follow)
    assert ended.wait(LIMIT)
    pool.join(timeout=LIMIT)


def set_status(status: Status, dask_worker: Worker) -> None:
    """As Dask does when its memory limit is near, or is not any more."""
    dask_worker.status = status


def test_17_a_paused_worker_with_its_own_queue_full(new_cluster: Callable[..., Any]) -> None:
    """One worker, memory paused, its own queue full: drains."""
    _, client = new_cluster(n_workers=1)
    with QueuePool(client, maxsize=10) as pool:
        serve(client, pool)
        assert pool.submit(abs, -1).result(LIMIT) == 1
        client.run(set_status, Status.paused)
        with cf.ThreadPoolExecutor(1) as threads:
            call = threads.submit(pool.submit_many, passing, range(25))
            assert call.result(LIMIT).results(LIMIT) == list(range(25))
        client.run(set_status, Status.running)
        assert list(pool.map(abs, range(100), timeout=LIMIT)) == list(range(100))


def test_a_paused_worker_leaves_it_to_others(client: Client, make: Callable[..., QueuePool], victims: Any) -> None:
    """While another worker serves the queue, a paused one takes nothing."""
    pool = make(maxsize=20)
    serve(client, pool)
    host = victims(client).host(pool)
    client.run(set_status, Status.paused, workers=[host])
    try:
        pool.submit_many(passing, range(20)).wait(LIMIT)  # what it had asked for before
        where = set(pool.map(lambda _: _address(), range(100), timeout=LIMIT))
        assert where == set(client.scheduler_info()["workers"]) - {host}
    finally:
        client.run(set_status, Status.running, workers=[host])
    assert list(pool.map(abs, range(100), timeout=LIMIT)) == list(range(100))


def _address() -> str:
    from distributed import get_worker

    return str(get_worker().address)


# ------------------------------------------------------------------------------------- who waits at a queue for room


def actor_of(count: int, **options: Any) -> QueueActor:
    """A full queue."""
    actor = QueueActor(TransientQueue(clock=time.monotonic_ns, maxsize=count, **options))
    actor.queue.put_block(b"block", count)
    return actor


async def waiting(actor: QueueActor, count: int = 1, **numbered: Any) -> asyncio.Task[Any]:
    """A put that waits for room."""
    task = asyncio.ensure_future(actor.admit([Batch(count, b"more")], wait=LONG, **numbered))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    return task


def test_room_for_one_at_a_time() -> None:
    """Every end wakes those that fit, in the order in which they came."""

    async def main() -> None:
        actor = actor_of(10)
        puts = [await waiting(actor, 4), await waiting(actor, 4), await waiting(actor, 4)]
        lease = await actor.lease(10)
        assert lease is not None
        await actor.ack(lease, [0, 1, 2])
        await asyncio.sleep(0)
        assert not any(put.done() for put in puts)
        await actor.ack(lease, [3])
        assert await puts[0] == Accepted(10, 4)
        await actor.ack(lease, range(4, 10))
        assert await puts[1] == Accepted(14, 4)
        assert not puts[2].done()
        await actor.close()
        assert await puts[2] == NoRoom(2)

    asyncio.run(main())


def test_a_large_put_is_not_starved_by_small_ones() -> None:
    """Those that come later wait behind it although they would fit."""

    async def main() -> None:
        actor = actor_of(10)
        large = await waiting(actor, 10)
        lease = await actor.lease(10)
        assert lease is not None
        await actor.ack(lease, range(9))
        small = await waiting(actor, 1)
        await actor.ack(lease)
        assert await large == Accepted(10, 10)
        assert not small.done()
        await actor.close()

    asyncio.run(main())


def test_no_room_in_time() -> None:
    """Full, after so many seconds; its number stays free, and its successors go on waiting for it."""

    async def main() -> None:
        actor = actor_of(3)
        await actor.ack(await actor.lease(1) or 0)
        assert await actor.admit([Batch(1, b"first")], producer=7, number=0) == Accepted(3, 1)
        later = asyncio.ensure_future(actor.admit([Batch(1, b"third")], producer=7, number=2, wait=LONG))
        assert await actor.admit([Batch(1, b"second")], producer=7, number=1, wait=0.02) == NoRoom(0)
        again = await waiting(actor, producer=7, number=1)
        await actor.ack(await actor.lease(2) or 0)
        assert await again == Accepted(4, 1)
        assert await later == Accepted(5, 1)
        await actor.close()

    asyncio.run(main())


def test_who_is_refused_at_once() -> None:
    """Without waiting; those that wait for it are refused with it, and those that come later."""

    async def main() -> None:
        actor = actor_of(3)
        await actor.ack(await actor.lease(1) or 0)
        assert await actor.admit([Batch(1, b"first")], producer=7, number=0) == Accepted(3, 1)
        third = asyncio.ensure_future(actor.admit([Batch(1, b"third")], producer=7, number=2))
        await asyncio.sleep(0)
        assert isinstance(await actor.admit([Batch(1, b"second")], producer=7, number=1), NoRoom)
        assert isinstance(await third, NoRoom)
        assert isinstance(await actor.admit([Batch(1, b"fourth")], producer=7, number=3), NoRoom)
        await actor.ack(await actor.lease(3) or 0)
        assert await actor.admit([Batch(1, b"instead")], producer=7, number=1) == Accepted(4, 1)
        await actor.close()

    asyncio.run(main())


def test_who_is_gone_waits_no_more() -> None:
    """A put whose caller was cancelled is not admitted when there is room."""

    async def main() -> None:
        actor = actor_of(2)
        gone = await waiting(actor)
        gone.cancel()
        await asyncio.wait([gone])
        await actor.ack(await actor.lease(2) or 0)
        assert actor.queue.puts == 2
        await actor.close()

    asyncio.run(main())
