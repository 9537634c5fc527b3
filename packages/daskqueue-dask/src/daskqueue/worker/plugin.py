"""The worker plugin: what daskqueue is in each Dask worker.

It serves the queues the directory placed here, runs the consumers it placed here, and speaks for both: one handler,
one connection pool of its own, one heartbeat. Registered once by the first pool of a cluster and installed by Dask on
every worker, present and future; a second registration must not touch it (`idempotent`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Coroutine
from typing import Any, Final

import dask
from dask.utils import parse_timedelta
from distributed import Worker, WorkerPlugin

from daskqueue.wire.link import Link, PoolGone, QueueReplaced, Route, SchedulerGone, new_connection_pool
from daskqueue.wire.operations import ERROR, HANDLER, OK, PROTOCOL
from daskqueue.worker.async_loop import PrivateLoop
from daskqueue.worker.consumer_actor import ConsumerActor
from daskqueue.worker.queue_actor import HEARTBEAT_S
from daskqueue.worker.queue_host import QueueHost
from daskqueue_core.consumer import LeaseBook, RequestNumbers
from daskqueue_core.directory import Place
from daskqueue_core.errors import NotInstalled, QueueUnavailable

__all__ = ["DaskQueueWorker"]

logger = logging.getLogger(__name__)

TEARDOWN_S: Final = 3.0


class DaskQueueWorker(WorkerPlugin):
    """daskqueue in one worker."""

    name = "daskqueue"
    idempotent = True

    def __init__(self) -> None:
        self.protocol = PROTOCOL

    async def setup(self, worker: Worker) -> None:
        """Serve, and tell the directory that this worker is here."""
        self.worker = worker
        self.owner = f"{worker.address}#{secrets.token_hex(8)}"
        self.ttl = _worker_ttl()
        self.numbers = RequestNumbers()
        self.books: dict[str, LeaseBook] = {}  # by queue uuid
        self._beats: dict[str, int] = {}  # heartbeats under way, by queue uuid
        self._tasks: set[asyncio.Task[None]] = set()
        self.routes: dict[str, Route] = {}
        self.host = QueueHost(worker.memory_manager.memory_limit)
        self.consumers: dict[str, ConsumerActor] = {}
        self.async_loop = PrivateLoop()
        self.connections = new_connection_pool(worker.connection_args)
        await self.connections.start()
        self.link = Link(self.connections, self._resolve, self.host.local)
        worker.handlers[HANDLER] = self.handle
        self._beating = asyncio.ensure_future(self._beat())
        answer = await getattr(worker.scheduler, HANDLER)(
            do="hello", address=worker.address, owner=self.owner, nthreads=worker.state.nthreads, protocol=PROTOCOL
        )
        if answer is None or answer[0] != OK:
            why = answer[2] if answer else "it does not know daskqueue"
            raise NotInstalled(f"daskqueue on {worker.address} was refused by the scheduler: {why}")

    async def teardown(self, worker: Worker) -> None:
        """Give back what has not started, and stop serving."""
        self._beating.cancel()
        leaving = [actor.stop(drain=True) for actor in self.consumers.values()]
        self.consumers.clear()
        if leaving:
            try:
                await asyncio.wait_for(asyncio.gather(*leaving, return_exceptions=True), TEARDOWN_S)
            except asyncio.TimeoutError:
                logger.warning("worker %s: consumers still run while the worker leaves", worker.address)
        await self.host.close()
        await asyncio.to_thread(self.async_loop.close, 1.0)
        await self.connections.close()

    # -- operations

    async def handle(self, comm: Any, do: str, uuid: str | None = None, **message: Any) -> Any:
        """The one handler: operations on queues by uuid, orders of the directory without."""
        if uuid is not None:
            return await self.host.handle(do, uuid, message, lambda: not comm.closed())
        order = getattr(self, f"order_{do}", None)
        if order is None:
            return ERROR, "UnknownOperation", do
        try:
            return OK, await order(**message)
        except Exception as error:
            logger.exception("worker %s failed at %s", self.worker.address, do)
            return ERROR, type(error).__name__, str(error)

    async def order_host(self, queue: str, epoch: int, options: dict[str, Any], expected: tuple[str, ...]) -> None:
        """Serve a queue."""
        self.host.open(queue, epoch, options, expected)

    async def order_drop(self, queue: str) -> None:
        """That queue is over."""
        await self.host.drop(queue)

    async def order_lost(self, owner: str) -> None:
        """That owner is gone."""
        await self.host.owner_lost(owner)

    async def order_consume(self, pool: str, consumers: str, count: int, spec: dict[str, Any], places: Any) -> None:
        """Run `count` consumers of a consumer pool."""
        actor = self.consumers.get(consumers)
        if actor is None:
            route = self.routes.setdefault(pool, Route(pool, [Place(*place) for place in places]))
            actor = ConsumerActor(self, route, consumers, spec)
            self.consumers[consumers] = actor
            await actor.start()
        actor.resize(count)

    async def order_stop(self, consumers: str, drain: bool) -> None:
        """That consumer pool is over here."""
        actor = self.consumers.pop(consumers, None)
        if actor is not None:
            await actor.stop(drain=drain)
            used = {other.pool for other in self.consumers.values()}
            if actor.pool not in used:
                self.routes.pop(actor.pool, None)

    # -- for the consumers

    def book(self, uuid: str) -> LeaseBook:
        """The requests and leases of this worker at a queue."""
        book = self.books.get(uuid)
        if book is None:
            book = self.books[uuid] = LeaseBook(self.numbers)
        return book

    def queue_lost(self, uuid: str) -> None:
        """That life of a queue is over; whoever finds out says so here."""
        if self.books.pop(uuid, None) is not None:
            for consumers in self.consumers.values():
                consumers.queue_lost(uuid)

    async def heartbeat(self, route: Route, index: int) -> None:
        """Tell a queue what is held and awaited there."""
        uuid = route.places[index].uuid
        book = self.books.get(uuid)
        if book is None or not book.active:
            return
        held, open_, sent = book.heartbeat()
        news = {"owner": self.owner, "held": held, "open": open_, "sent": sent, "ttl": self.ttl}
        self._beats[uuid] = self._beats.get(uuid, 0) + 1
        try:
            cancels = await self.link.call(route, index, "heartbeat", uuid=uuid, patience=HEARTBEAT_S, **news)
            for lease in cancels:
                for consumers in self.consumers.values():
                    consumers.give_back(uuid, lease)
        except QueueReplaced:
            self.queue_lost(uuid)
        except (QueueUnavailable, PoolGone, SchedulerGone):
            pass  # whoever leases there finds out
        finally:
            self._beats[uuid] -= 1
            if not self._beats[uuid]:
                del self._beats[uuid]

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            here = {place.uuid for route in self.routes.values() for place in route.places}
            for uuid in set(self.books) - here:
                self.queue_lost(uuid)
            for route in list(self.routes.values()):
                for index in range(len(route)):
                    uuid = route.places[index].uuid
                    if uuid in self.books and uuid not in self._beats:  # a host that does not answer gets no more
                        self._spawn(self.heartbeat(route, index))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _resolve(self, pool: str) -> list[Place] | None:
        answer = await getattr(self.worker.scheduler, HANDLER)(do="resolve", pool=pool)
        if not answer or answer[0] != OK:
            raise OSError(f"the scheduler answered {answer!r}")
        return None if answer[1] is None else [Place(*place) for place in answer[1]]


def _worker_ttl() -> int:
    """Nanoseconds after which Dask itself gives a silent worker up."""
    ttl = dask.config.get("distributed.scheduler.worker-ttl", default=None)
    seconds = parse_timedelta(ttl) if ttl else None
    return int((300.0 if seconds is None else seconds) * 1e9)
