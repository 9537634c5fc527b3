"""The worker plugin in a worker of the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Client, Scheduler, Worker
from distributed.core import Status

from daskqueue import ConsumerPool, QueuePool
from daskqueue.client.install import install
from daskqueue.wire.operations import ERROR, HANDLER
from daskqueue.worker import consumer_actor
from daskqueue.worker import plugin as plugin_module
from daskqueue.worker.plugin import DaskQueueWorker
from daskqueue_storage.errors import StorageError

LIMIT = 60


@pytest.mark.parametrize("at_once", [True, False])
def test_a_closing_that_is_cancelled(at_once: bool) -> None:
    """Before it came to the plugin, or where `wait_for` swallows that: all else there is cancelled with it, and who
    waits for its end is let go."""

    async def swallowing(*args: Any) -> float:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return 0.0

    async def test() -> None:
        async with (
            Scheduler(port=0, dashboard=False) as scheduler,
            Worker(scheduler.address, dashboard=False) as worker,
            Client(scheduler.address, asynchronous=True) as client,
        ):
            await install(client)
            before = asyncio.all_tasks()
            plugin: Any = worker.plugins["daskqueue"]
            plugin._give_queues_away = swallowing
            closing = asyncio.ensure_future(worker.close())
            await asyncio.sleep(0)
            assert not plugin._leaving
            while not (at_once or plugin._leaving):  # noqa: ASYNC110  # there is no event for it
                await asyncio.sleep(0)
            for task in asyncio.all_tasks() - before | _of_plugin(before):
                task.cancel()
            assert isinstance((await asyncio.gather(closing, return_exceptions=True))[0], asyncio.CancelledError)
            await asyncio.wait_for(worker.finished(), LIMIT)

    asyncio.run(test())


def _of_plugin(tasks: set[asyncio.Task[object]]) -> set[asyncio.Task[object]]:
    return {task for task in tasks if "DaskQueueWorker" in str(task.get_coro())}


async def until(condition: Callable[[], Any]) -> Any:
    """Ask until it is true, and return what it said."""
    while not (value := condition()):  # noqa: ASYNC110  # there is no event for it
        await asyncio.sleep(0.001)
    return value


@contextlib.asynccontextmanager
async def cluster(workers: int) -> AsyncIterator[tuple[Client, list[Any]]]:
    """A client, and the plugins of so many workers of one thread."""
    async with contextlib.AsyncExitStack() as stack:
        scheduler = await stack.enter_async_context(Scheduler(port=0, dashboard=False))
        there = [Worker(scheduler.address, nthreads=1, dashboard=False) for _ in range(workers)]
        for worker in there:
            await stack.enter_async_context(worker)
        client = Client(scheduler.address, asynchronous=True, set_as_default=False)
        await stack.enter_async_context(client)
        await install(client)
        yield client, [worker.plugins["daskqueue"] for worker in there]


@pytest.fixture
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that leaves does not wait long."""
    monkeypatch.setattr(plugin_module, "TEARDOWN_S", 0.2)
    monkeypatch.setattr(plugin_module, "SPARE_S", 0.0)


def coroutine(oracle: Any) -> Callable[[], Awaitable[None]]:
    """A task that does not end."""

    async def endless() -> None:
        oracle.mark("begun")
        await asyncio.get_running_loop().create_future()

    return endless


def returns_a_coroutine(oracle: Any) -> Callable[[], Awaitable[None]]:
    """The same, begun in a thread."""
    endless = coroutine(oracle)
    return lambda: endless()


@pytest.mark.usefixtures("_in_a_hurry")
@pytest.mark.parametrize("task", [coroutine, returns_a_coroutine])
@pytest.mark.parametrize("timeout", [None, 3600])
def test_what_our_closing_cancels_has_not_failed(
    task: Callable[[Any], Any], timeout: float | None, oracle: Any
) -> None:
    """A coroutine runs when its worker has no more time: it goes back with all that the worker held."""

    async def test() -> None:
        async with cluster(2) as (client, plugins):
            pool = await QueuePool(client)
            host = await until(lambda: next((each.host for each in plugins if each.host.actors), None))
            (queue,) = host.actors.values()
            leaver = next(each for each in plugins if each.host is not host)
            await ConsumerPool(client, pool).start()
            futures = [pool.options(timeout=timeout).submit(task(oracle)) for _ in range(2)]
            await until(lambda: len(oracle.lines()) == 2)
            (actor,) = leaver.consumers.values()
            lost, close = asyncio.Event(), leaver.connections.close

            async def close_late() -> None:
                """What is reported has arrived by then."""
                await asyncio.wait([actor._ending])
                assert queue.queue.stats().delivered == 2
                lost.set()
                await close()

            leaver.connections.close = close_late
            await leaver.worker.close()
            assert lost.is_set()
            await until(lambda: queue.queue.stats().delivered == 1)
            assert queue.queue.stats().failed == 0
            assert not any(future.done() for future in futures)

    asyncio.run(asyncio.wait_for(test(), LIMIT))


def test_a_coroutine_is_waited_for(monkeypatch: pytest.MonkeyPatch, oracle: Any, gate: Any) -> None:
    """Its worker leaves: it ends, and is reported, first."""
    monkeypatch.setattr(plugin_module, "TEARDOWN_S", LIMIT)

    async def task(n: int) -> int:
        oracle.mark(n)
        while not gate.is_open:  # noqa: ASYNC110  # it is a file
            await asyncio.sleep(0.001)
        return -n

    async def test() -> None:
        async with cluster(2) as (client, plugins):
            pool = await QueuePool(client)
            await ConsumerPool(client, pool).start()
            futures = [pool.submit(task, n) for n in range(2)]
            await until(lambda: len(oracle.lines()) == 2)
            leaver = next(each for each in plugins if not each.host.actors)
            closing = asyncio.ensure_future(leaver.worker.close())
            await until(lambda: leaver._leaving)
            gate.open()
            assert await asyncio.gather(*futures) == [0, -1]
            await closing
            assert oracle.counts() == {"0": 1, "1": 1}

    asyncio.run(asyncio.wait_for(test(), LIMIT))


def test_what_cannot_begin_as_the_process_ends_has_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Executors take nothing any more, long before Dask closes the worker: nothing more is leased there."""
    monkeypatch.setattr(consumer_actor, "threads_take_work", lambda: False)

    def make() -> Executor:
        executor = ThreadPoolExecutor(1)
        executor.shutdown()
        return executor

    async def test() -> None:
        async with cluster(1) as (client, (plugin,)):
            pool = await QueuePool(client)
            await ConsumerPool(client, pool, executor=make).start()
            (actor,) = plugin.consumers.values()
            futures = [pool.submit(abs, n) for n in range(9)]
            (queue,) = plugin.host.actors.values()
            await until(lambda: actor.is_stopping)
            await actor.stop()
            await until(lambda: queue.queue.stats().ready == 9)
            assert not any(future.done() for future in futures)

    asyncio.run(asyncio.wait_for(test(), LIMIT))


@pytest.mark.usefixtures("_in_a_hurry")
@pytest.mark.parametrize("what", ["consumers", "host"])
def test_a_closing_in_which_something_fails(what: str, caplog: pytest.LogCaptureFixture) -> None:
    """The rest is closed nevertheless, and who waits for the farewell hears it."""
    caplog.set_level(logging.WARNING)

    async def fail() -> None:
        raise LookupError("a glitch")

    async def test() -> None:
        async with cluster(1) as (_, (plugin,)):
            if what == "host":
                plugin.host.close = fail
            else:
                plugin._give_queues_away = fail
            farewell = asyncio.ensure_future(plugin.order_farewell())
            await plugin.worker.close()
            await farewell
            assert what == "host" or plugin.host._closed
            assert plugin.connections.status == Status.closed
            with pytest.raises(RuntimeError, match="closed"):
                plugin.async_loop.submit(fail())

    asyncio.run(asyncio.wait_for(test(), LIMIT))
    assert "a glitch" in caplog.text


def failing_once(function: Callable[..., Any], error: Exception, calls: list[object]) -> Callable[..., Any]:
    """`function`, but its first call raises; all are noted."""

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        if len(calls) == 1:
            raise error
        return function(*args, **kwargs)

    return call


def test_heartbeats_go_on_though_one_fails(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Else the queues would take back what runs here."""
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(plugin_module, "HEARTBEAT_S", 0.001)
    calls: list[object] = []

    async def test() -> None:
        async with cluster(1) as (_, (plugin,)):
            plugin._drop_routes = failing_once(plugin._drop_routes, LookupError("a glitch"), calls)
            await until(lambda: len(calls) > 2)

    asyncio.run(asyncio.wait_for(test(), LIMIT))
    assert caplog.text.count("a round of heartbeats failed") == 1


def test_what_the_scheduler_did_not_hear_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else would say that a queue is over; a worker that has closed says nothing more."""
    monkeypatch.setattr(plugin_module, "HEARTBEAT_S", 0.001)
    calls: list[object] = []

    async def test() -> None:
        async with cluster(1) as (_, (plugin,)):
            scheduler = plugin.worker.scheduler
            monkeypatch.setattr(plugin.worker, "scheduler", SimpleNamespace())
            setattr(plugin.worker.scheduler, HANDLER, failing_once(getattr(scheduler, HANDLER), OSError("no"), calls))
            news = {"do": "over", "pool": "p", "queue": "u", "epoch": 0}
            await plugin._tell_scheduler(**news)
            assert calls == [news, news]
            setattr(plugin.worker.scheduler, HANDLER, failing_once(abs, OSError("no"), []))
            plugin._silent.set()
            await plugin._tell_scheduler(**news)
            monkeypatch.undo()

    asyncio.run(asyncio.wait_for(test(), LIMIT))


@pytest.mark.parametrize("error", [StorageError("d", "no"), ConnectionRefusedError("no")])
def test_what_others_do_is_no_fault_of_ours(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """An order that cannot be carried out because of it is answered; the worker's log has no traceback."""

    class Ordered(DaskQueueWorker):
        async def order_drop(self, queue: str, epoch: int) -> None:
            raise error

    answer: Any = asyncio.run(Ordered().handle(None, "drop", queue="q", epoch=0))
    assert answer == (ERROR, type(error).__name__, str(error))
    assert not caplog.records
