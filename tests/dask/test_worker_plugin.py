"""The worker plugin in a worker of the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from distributed import Client, Scheduler, Worker

from daskqueue.client.install import install
from daskqueue.wire.operations import ERROR
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


@pytest.mark.parametrize("error", [StorageError("d", "no"), ConnectionRefusedError("no")])
def test_what_others_do_is_no_fault_of_ours(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """An order that cannot be carried out because of it is answered; the worker's log has no traceback."""

    class Ordered(DaskQueueWorker):
        async def order_drop(self, queue: str, epoch: int) -> None:
            raise error

    answer: Any = asyncio.run(Ordered().handle(None, "drop", queue="q", epoch=0))
    assert answer == (ERROR, type(error).__name__, str(error))
    assert not caplog.records
