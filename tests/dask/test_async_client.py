"""Everything from within an event loop: an asynchronous Dask client, on which no call may block."""

from __future__ import annotations

import asyncio
import contextlib
import operator
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import CancelledError
from queue import Full
from typing import Any

import pytest
from distributed import Client

from daskqueue import ConsumerBaseClass, ConsumerPool, QueueExecutor, QueuePool
from daskqueue_core.errors import PoolClosed, QueueLost

LIMIT = 60


@pytest.fixture
def run(client: Client) -> Callable[[Callable[[Client], Coroutine[Any, Any, None]]], None]:
    """`run(test)`: `await test(client)` with an asynchronous client of the shared cluster."""

    def run(test: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            address = client.scheduler.address
            async with Client(address, asynchronous=True, set_as_default=False) as theirs:
                await asyncio.wait_for(test(theirs), LIMIT)

        asyncio.run(main())

    return run


@contextlib.asynccontextmanager
async def served(client: Client, **options: Any) -> AsyncIterator[QueuePool]:
    """A pool with a consumer on each worker."""
    async with QueuePool(client, **options) as pool, ConsumerPool(client, pool):
        yield pool


async def eventually(condition: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    """Ask until it is true."""
    while not await condition():  # noqa: ASYNC110  # what is asked for is elsewhere
        await asyncio.sleep(0.005)


def failing(n: int) -> int:
    """Fails for 3 and 7."""
    if n in (3, 7):
        raise LookupError(n)
    return n


def nap(seconds: float, value: Any = None) -> Any:
    """A task that takes its time."""
    threading.Event().wait(seconds)
    return value


def test_submit_and_await(run: Callable[..., None], gate: Any) -> None:
    """submit returns at once, the future is awaited; gather, wait_for, and an exception."""

    async def test(client: Client) -> None:
        pool = await QueuePool(client)
        assert await pool is pool
        consumers = ConsumerPool(client, pool)
        await consumers.start()
        assert await consumers[0] in await client.run(os.getpid)
        with pytest.raises(TypeError, match=r"await consumers\[i\]"):
            iter(consumers)
        assert await pool.submit(operator.add, 1, 2) == 3
        assert await asyncio.gather(*[pool.submit(operator.neg, n) for n in range(500)]) == [-n for n in range(500)]
        with pytest.raises(LookupError):
            await pool.submit(failing, 3)
        slow = pool.submit(gate)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(slow)), 0.02)
        gate.open()
        done, _ = await asyncio.wait([asyncio.wrap_future(slow)])
        assert [future.result() for future in done] == [None]
        await consumers.cancel()
        await pool.shutdown()
        with pytest.raises(RuntimeError, match="shut down"):
            pool.submit(abs, 1)
        await pool.shutdown()

    run(test)


def test_context_managers(run: Callable[..., None], oracle: Any) -> None:
    """Leaving waits for the work; leaving by an exception cancels."""

    async def test(client: Client) -> None:
        async with QueuePool(client) as pool, ConsumerPool(client, pool):
            futures = [pool.submit(nap, 0.01, n) for n in range(20)]
        assert [future.result(0) for future in futures] == list(range(20))
        with pytest.raises(ZeroDivisionError):
            async with QueuePool(client) as pool:
                future = pool.submit(oracle.mark, 1)
                raise ZeroDivisionError
        with pytest.raises((CancelledError, asyncio.CancelledError)):
            await future
        assert oracle.lines() == []

    run(test)


def test_left_by_an_exception_while_a_task_runs(
    run: Callable[..., None], gate: Any, eventually: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not waited for for ever, and the pool has ended."""
    monkeypatch.setattr("daskqueue.client.queue_pool.LEAVE_S", 0.2)

    async def test(client: Client) -> None:
        with pytest.raises(ZeroDivisionError):
            async with QueuePool(client, name="left-async") as pool:
                await ConsumerPool(client, pool).start()
                future = pool.submit(gate, 1)
                await asyncio.to_thread(eventually, lambda: gate.count("came"))
                raise ZeroDivisionError
        assert future.cancelled()
        with pytest.raises(KeyError):
            await QueuePool.attach(client, "left-async")
        gate.open()

    run(test)


def test_map(run: Callable[..., None], gate: Any) -> None:
    """An asynchronous iterator, in order; with a buffersize endless; stopped, it leaves nothing running."""

    async def test(client: Client) -> None:
        async with served(client) as pool:
            assert [value async for value in pool.map(operator.neg, range(3000))] == [-n for n in range(3000)]
            assert [value async for value in pool.map(abs, [])] == []
            source = iter(range(10**9))
            values = pool.map(operator.pos, source, buffersize=10)
            seen = []
            async for value in values:
                seen.append(value)
                if value == 99:
                    break
            await values.aclose()
            assert seen == list(range(100))
            assert next(source) <= 110
            values = pool.map(failing, range(10), buffersize=4)
            assert [await values.__anext__() for _ in range(3)] == [0, 1, 2]
            with pytest.raises(LookupError):
                await values.__anext__()
            assert [value async for value in values] == []
            with pytest.raises(TimeoutError):
                async for _ in pool.map(gate, range(2), timeout=0.1):
                    pass
            gate.open()

            async def nothing_left() -> bool:
                return all(queue.puts == queue.finished for queue in await pool.stats())

            await eventually(nothing_left)

    run(test)


def test_batches(run: Callable[..., None], gate: Any) -> None:
    """Awaited for all values, or iterated as completed."""

    async def test(client: Client) -> None:
        async with served(client) as pool:
            batch = pool.submit_many(operator.neg, range(5000))
            assert await batch == [-n for n in range(5000)]
            assert await batch[17] == -17
            mixed = pool.batch_submit([(gate, "slow"), (abs, -1), (failing, 3)], batch_size=1)
            order = []
            async for future in mixed:
                order.append(future)
                if len(order) == 2:
                    gate.open()
            assert order[-1] is mixed[0]
            assert len(order) == 3
            with pytest.raises(LookupError):
                await mixed
            assert list(mixed.failures(0)) == [2]
            await mixed.wait_async()
            assert await pool.submit_many(abs, []) == []

    run(test)


def test_the_loop_is_never_held(run: Callable[..., None]) -> None:
    """While work is submitted and read, a ticker ticks."""

    async def test(client: Client) -> None:
        loop = asyncio.get_running_loop()
        longest, before = 0.0, loop.time()
        over = False

        async def tick() -> None:
            nonlocal longest, before
            while not over:
                await asyncio.sleep(0)
                longest, before = max(longest, loop.time() - before), loop.time()

        async with served(client, maxsize=50) as pool:
            ticking = asyncio.ensure_future(tick())
            futures = [pool.submit(nap, 0.001, n) for n in range(300)]
            assert await asyncio.gather(*futures) == list(range(300))
            over = True
            await ticking
        assert longest < 10.0  # a call that waits there for room waits for ever

    run(test)


def test_reading(run: Callable[..., None]) -> None:
    """join, flush, stats, sizes, results, failures, from the pool and from the consumers."""

    async def test(client: Client) -> None:
        async with QueuePool(client, 2) as pool:
            assert len(pool) == 2
            futures = [pool.submit(failing, n) for n in range(10)]
            await pool.flush()
            assert sum(queue.ready for queue in await pool.stats()) == 10
            assert sum((await pool.get_queue_size()).values()) == 10
            with pytest.raises(TimeoutError):
                await pool.join(timeout=0.05)
            async with ConsumerPool(client, pool) as consumers:
                await consumers.join(timeout=LIMIT)
                assert all(future.done() for future in futures)
                good = {future.key: n for n, future in enumerate(futures) if n not in (3, 7)}
                assert await pool.results() == await consumers.results() == good
                assert await pool.results([futures[0].key]) == {futures[0].key: 0}
                assert set(await pool.failures()) == set(await consumers.failures()) == {futures[3].key, futures[7].key}
                with pytest.raises(LookupError):
                    await consumers.results(raise_on_error=True)
                assert await consumers.drain(timeout=LIMIT) is True

    run(test)


def test_put_and_a_custom_consumer(run: Callable[..., None], oracle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """put and put_many are awaited; with a full queue they raise as asked, however long its answer takes."""
    monkeypatch.setattr("daskqueue.client.pool_connection.GRACE_S", LIMIT)
    monkeypatch.setattr("daskqueue.client.pool_connection.ANSWER_S", LIMIT)

    class Sink(ConsumerBaseClass):
        def process_item(self, item: Any) -> None:
            oracle.mark(item)

    async def test(client: Client) -> None:
        async with QueuePool(client, maxsize=3) as pool:
            await pool.put("a")
            await pool.put_many(["b", "c"], timeout=LIMIT)
            with pytest.raises(Full):
                await pool.put("d", block=False)
            with pytest.raises(Full):
                await pool.put("d", timeout=0.05)
            waits = asyncio.ensure_future(pool.put_many("efghi"))
            async with ConsumerPool(client, pool, Sink):
                await waits
        assert sorted(oracle.lines()) == list("abcefghi")

    run(test)


def test_wait_capacity(run: Callable[..., None]) -> None:
    """It returns at once while there is room, and else when the queues have taken some."""

    async def test(client: Client) -> None:
        async with QueuePool(client, maxsize=10) as pool:
            await asyncio.wait_for(pool.wait_capacity(), LIMIT)
            futures = [pool.submit(abs, -n) for n in range(100)]
            waits = asyncio.ensure_future(pool.wait_capacity())
            await pool.stats()
            assert not waits.done(), "nobody serves it"
            async with ConsumerPool(client, pool):
                await waits
                assert await asyncio.gather(*futures) == list(range(100))
                for n in range(200):
                    await pool.wait_capacity()
                    futures.append(pool.submit(abs, -n))
                await asyncio.gather(*futures)

    run(test)


def test_wait_capacity_of_a_pool_that_ends(run: Callable[..., None]) -> None:
    """Nobody waits for ever."""

    async def test(client: Client) -> None:
        pool = await QueuePool(client, maxsize=10)
        futures = [pool.submit(abs, -n) for n in range(100)]
        waits = asyncio.ensure_future(pool.wait_capacity())
        await pool.stats()
        await pool.shutdown(cancel_futures=True)
        await asyncio.wait_for(waits, LIMIT)
        assert all(future.cancelled() for future in futures)

    run(test)


def test_cancel(run: Callable[..., None], oracle: Any) -> None:
    """cancel asks and says False, cancel_async gives the answer, batch.cancel asks."""

    async def test(client: Client) -> None:
        async with QueuePool(client) as pool:
            futures = [pool.submit(oracle.mark, n) for n in range(4)]
            batch = pool.submit_many(oracle.mark, range(4, 2000))
            await pool.flush()
            assert futures[0].cancel() is False
            assert await futures[1].cancel_async() is True
            assert await futures[1].cancel_async() is True
            assert batch.cancel() == 0
            await batch.wait_async()
            assert batch.counts() == (0, 0, 1996)
            late = pool.submit(oracle.mark, -1)
            assert late.cancel() is True, "still in the buffer"
            with pytest.raises((CancelledError, asyncio.CancelledError)):
                await futures[0]
            async with ConsumerPool(client, pool):
                await pool.join(timeout=LIMIT)
        assert sorted(oracle.lines()) == ["2", "3"]

    run(test)


def test_a_named_pool_from_two_clients(run: Callable[..., None], client: Client) -> None:
    """An asynchronous client and a synchronous one use the same pool."""

    async def test(theirs: Client) -> None:
        async with served(theirs, name="both") as pool:
            other = await asyncio.to_thread(QueuePool.attach, client, "both")
            future = await asyncio.to_thread(other.submit, abs, -1)
            assert await pool.submit(abs, -2) == 2
            assert await asyncio.to_thread(future.result, LIMIT) == 1
            again = await QueuePool.attach(theirs, "both")
            assert again.name == pool.name
            with pytest.raises(KeyError):
                await QueuePool.attach(theirs, "nobody's")

    run(test)


def test_a_task_that_submits(run: Callable[..., None]) -> None:
    """A pool pickled into a task attaches there."""

    def parent(pool: QueuePool, n: int) -> int:
        return pool.submit(operator.neg, n).result(LIMIT)

    async def test(client: Client) -> None:
        async with QueuePool(client) as pool, ConsumerPool(client, pool, concurrency=4):
            assert await pool.submit(parent, pool, 5) == -5

    run(test)


# ---------------------------------------------------------------------------------------------------------- misuse


def test_without_await(run: Callable[..., None]) -> None:
    """RuntimeError that says what to do; the pool can still be awaited."""

    async def test(client: Client) -> None:
        pool = QueuePool(client)
        assert "awaited" in repr(pool)
        for call in (lambda: pool.submit(abs, 1), lambda: pool.map(abs, [1]), lambda: pool.put(1), lambda: len(pool)):
            with pytest.raises(RuntimeError, match=r"await QueuePool\(client\)"):
                call()
        await pool
        assert "open" in repr(pool)
        await pool.shutdown()

    run(test)


@pytest.mark.filterwarnings("error")
def test_never_awaited(run: Callable[..., None]) -> None:
    """A pool that was never awaited was never made; nothing is left that complains."""

    async def test(client: Client) -> None:
        pool = QueuePool(client)
        del pool

    run(test)


def test_an_executor_blocks(run: Callable[..., None]) -> None:
    """So it refuses an asynchronous client, and says what to use."""

    async def test(client: Client) -> None:
        with pytest.raises(TypeError, match="QueuePool and ConsumerPool"):
            QueueExecutor(client)

    run(test)


def test_a_closed_client(run: Callable[..., None]) -> None:
    """As with a synchronous one."""

    async def test(client: Client) -> None:
        pool = await QueuePool(client)
        future = pool.submit(abs, 1)
        await client.close()
        with pytest.raises(QueueLost):
            await future
        with pytest.raises(PoolClosed):
            await pool.stats()
        with pytest.raises(PoolClosed):
            pool.submit(abs, 1)

    run(test)
