"""The worker plugin: what daskqueue is in each Dask worker.

It serves the queues the directory placed here, runs the consumers it placed here, and speaks for both: one handler,
one connection pool of its own, one heartbeat. Registered once by the first pool of a cluster and installed by Dask on
every worker, present and future; a second registration must not touch it (`idempotent`).

A worker that leaves in peace has a few seconds (`teardown`). It gives back what it has not begun, and its queues to
others, first of all; then it waits for what it runs, which it reports to where the queues are by then.

Heartbeats are said while something is held here, or an abandoned request may still be granted; a parked request alone
needs none (see `LeaseBook.active`), so an idle pool sends nothing. A consumer pool that was stopped stays here, with
the route and the leases of its queues, until what it runs is reported: else its queues would give that to others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final

import dask
from dask.utils import parse_timedelta
from distributed import Worker, WorkerPlugin
from distributed.core import Status

from daskqueue.wire.apart import apart
from daskqueue.wire.compat import add_metric, end_heartbeats, end_of
from daskqueue.wire.link import Link, PoolGone, QueueReplaced, RemoteFailure, Route, SchedulerGone, new_connection_pool
from daskqueue.wire.moving import Piece, fetch, pack_piece
from daskqueue.wire.operations import ERROR, HANDLER, METRIC, OK, PROTOCOL, REFUSED
from daskqueue.worker.async_loop import PrivateLoop
from daskqueue.worker.consumer_actor import ConsumerActor
from daskqueue.worker.load import Load
from daskqueue.worker.pool_files import pool_in
from daskqueue.worker.queue_actor import HEARTBEAT_S
from daskqueue.worker.queue_host import HostOrder, OrderRefused, QueueHost
from daskqueue_core.consumer import LeaseBook, RequestNumbers
from daskqueue_core.directory import Place
from daskqueue_core.errors import NotInstalled, QueueUnavailable
from daskqueue_storage.errors import StorageError

__all__ = ["DaskQueueWorker"]

logger = logging.getLogger(__name__)

TEARDOWN_S: Final = 3.0  # of the four seconds that Dask gives a worker at least
RETIRED_S: Final = 6.0  # of the fifteen and more that it gives one that it retires
SPARE_S: Final = 0.5  # of these, after the queues have been given away
STARTING_S: Final = 1.0  # a nanny does not restart a worker that dies while it starts: nothing is run until then
REMEMBERED: Final = 1000


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
        self.serves_from = asyncio.get_running_loop().time()
        if worker.status != Status.running:
            self.serves_from += STARTING_S
        self.numbers = RequestNumbers()
        self.books: dict[str, LeaseBook] = {}  # by queue uuid
        self._beats: dict[str, int] = {}  # heartbeats under way, by queue uuid
        self._tasks: set[asyncio.Task[None]] = set()
        self.routes: dict[str, Route] = {}  # by the pool's id
        self.host = QueueHost(self.owner, self._queue_is_over, worker.memory_manager.memory_limit)
        self.consumers: dict[str, ConsumerActor] = {}
        self._leaving = False
        self._left = asyncio.Event()
        self._stopped: dict[str, None] = {}  # consumer pools that are over: an order that comes late starts none again
        self.async_loop = PrivateLoop()
        self.connections = new_connection_pool(worker.connection_args)
        await self.connections.start()
        self.link = Link(self.connections, self._resolve, self.host.local)
        worker.handlers[HANDLER] = self.handle
        add_metric(worker, METRIC, Load(self).measure)
        self._silent = asyncio.Event()
        self._beating = asyncio.ensure_future(self._beat())
        self._beating.add_done_callback(self._beaten)
        answer = await getattr(worker.scheduler, HANDLER)(
            do="hello", address=worker.address, owner=self.owner, nthreads=worker.state.nthreads, protocol=PROTOCOL
        )
        if answer is None or answer[0] != OK:
            why = answer[2] if answer else "it does not know daskqueue"
            raise NotInstalled(f"daskqueue on {worker.address} was refused by the scheduler: {why}")

    async def teardown(self, worker: Worker) -> None:
        """Give back what has not started, give the queues to others, and wait for what runs."""
        try:
            await self._leave_in_peace()
        except asyncio.CancelledError:  # and Dask's closing with us: it would never be over for those who wait for it
            end_of(worker)
            raise

    async def _leave_in_peace(self) -> None:
        self._leaving = True
        try:
            for step in (self._end_consumers, self.host.close):
                try:
                    await step()
                except Exception:  # whatever it is: all the rest has to be closed
                    logger.exception("worker %s did not leave in order", self.worker.address)
        finally:
            self._silent.set()
            self._left.set()
        await apart(self.async_loop.close, 1.0)
        await self.connections.close()

    async def _end_consumers(self) -> None:
        """As far as there is time. The queues go first."""
        end_heartbeats(self.worker)
        ending = [self._stop(actor) for actor in list(self.consumers.values())]
        left = await self._give_queues_away()
        if ending and (await asyncio.wait(ending, timeout=max(0.0, left)))[1]:
            logger.warning("worker %s: consumers still run while the worker leaves", self.worker.address)

    @property
    def has_left(self) -> bool:
        """Whether nothing that ends here is reported any more: it may end because this worker does."""
        return self._left.is_set()

    async def _give_queues_away(self) -> float:
        """Until others have them, as far as anybody can in time; returns how much is left of that, in seconds."""
        clock = asyncio.get_running_loop().time
        begun, seconds = clock(), TEARDOWN_S
        ask = getattr(self.worker.scheduler, HANDLER)
        try:
            answer = await asyncio.wait_for(ask(do="depart", address=self.worker.address), seconds - SPARE_S)
            if answer and answer[0] == OK:
                seconds = RETIRED_S if answer[1] else TEARDOWN_S
                left = begun + seconds - SPARE_S - clock()
                await asyncio.wait_for(ask(do="given", address=self.worker.address), max(0.0, left))
        except (OSError, asyncio.TimeoutError):  # the scheduler is gone, or it is too much
            pass
        except Exception:  # whatever it is: what is still served here has to be closed
            logger.exception("worker %s could not give its queues away", self.worker.address)
        return begun + seconds - clock()

    # -- operations

    async def handle(self, comm: Any, do: str, uuid: str | None = None, **message: Any) -> Any:
        """The one handler: operations on queues by uuid, orders of the directory and of other hosts without."""
        if uuid is not None:
            comm.allow_offload = False  # as `new_connection_pool`
            return await self.host.handle(do, uuid, message.pop("epoch"), message, lambda: not comm.closed())
        order = getattr(self, f"order_{do}", None)
        if order is None:
            return ERROR, "UnknownOperation", do
        try:
            return [OK, await order(**message)]  # a list: it may hold frames
        except OrderRefused as refusal:
            return ERROR, REFUSED, str(refusal)
        except (OSError, StorageError) as error:  # another host is gone, or still has it: who ordered it says so
            return ERROR, type(error).__name__, str(error)
        except Exception as error:
            logger.exception("worker %s failed at %s", self.worker.address, do)
            return ERROR, type(error).__name__, str(error)

    async def order_host(
        self,
        queue: str,
        epoch: int,
        pool: str,
        index: int,
        options: dict[str, Any],
        expected: tuple[str, ...],
        owners: tuple[str, ...],
        lost: tuple[str, ...],
        leaving: bool,
    ) -> None:
        """Serve a queue; with `leaving`, also while this worker leaves."""
        if not leaving:
            self._check_stays()
        await self.host.open(HostOrder(queue, epoch, pool, index, options, expected, owners, lost))

    async def order_take_over(
        self, queue: str, epoch: int, pool: str, index: int, source: str, options: dict[str, Any]
    ) -> list[str]:
        """Serve a queue as the worker `source` did until now; says who holds leases there."""
        if source != self.worker.address:
            self._check_stays()
        order = HostOrder(queue, epoch, pool, index, options)
        host = self.connections(source)

        async def ask(first: int) -> Piece | None:
            if source == self.worker.address:  # the move was called off
                return await self.host.hand_over(queue, epoch, first)
            answer = await getattr(host, HANDLER)(do="hand_over", queue=queue, epoch=epoch, first=first)
            if not isinstance(answer, (list, tuple)) or answer[0] != OK:
                raise RuntimeError(f"worker {source} did not hand queue {queue} over: {answer!r}")
            return None if answer[1] is None else Piece(*answer[1])

        return await self.host.take_over(order, partial(fetch, ask))

    def _check_stays(self) -> None:
        """The directory may not have heard: who stays is to be asked."""
        if self._leaving:
            raise OrderRefused("this worker leaves")

    async def order_hand_over(self, queue: str, epoch: int, first: int) -> Any:
        """A piece of a queue for the worker that takes it over; None if it is not to be had here."""
        piece = await self.host.hand_over(queue, epoch, first)
        return None if piece is None else pack_piece(piece)

    async def order_farewell(self) -> None:
        """Answered when this worker, which leaves, has done so."""
        await self._left.wait()

    async def order_drop(self, queue: str, epoch: int) -> None:
        """That queue is over, up to `epoch`."""
        await self.host.drop(queue, epoch)

    async def order_prepare(self, dirpath: str, n_queues: int | None, options: dict[str, Any]) -> Any:
        """The durable pool in a directory, made with `n_queues` if it is not there; None if it is not to be made."""
        found = await asyncio.to_thread(pool_in, dirpath, n_queues, options["storage"])
        return None if found is None else tuple(found)

    def _queue_is_over(self, order: HostOrder) -> None:
        """A durable queue cannot be served here any more: the directory finds it another host, or this one again."""
        self._spawn(self._tell_scheduler(do="over", pool=order.pool, queue=order.uuid, epoch=order.epoch))

    async def _tell_scheduler(self, **message: Any) -> None:
        """Until it has heard: nobody else would say so. It may hear twice."""
        while True:
            try:
                await getattr(self.worker.scheduler, HANDLER)(**message)
                return
            except OSError:
                if await self._silent_after(HEARTBEAT_S):
                    return

    async def order_lost(self, owner: str) -> None:
        """That owner is gone."""
        await self.host.owner_lost(owner)

    async def order_consume(
        self, pool: str, id: str, consumers: str, count: int, spec: dict[str, Any], places: Any
    ) -> Any:
        """Run `count` consumers of a consumer pool. Answered when they are set up, however long that takes: with the
        seconds until the end of this worker's job, None if there is no end."""
        actor = self.consumers.get(consumers)
        if actor is None:
            if not count or consumers in self._stopped or self._leaving:
                return None
            route = self._route(pool, id, places)
            actor = self.consumers[consumers] = ConsumerActor(self, route, consumers, spec)
            if actor.end.is_near:
                self.leave(actor)
                return actor.end.time_left
        try:
            await actor.start()
            actor.resize(count)
        except Exception as error:
            self._stop(actor)
            what = f"pool {pool}: the consumers ({actor.user.name}) did not start"
            raise RuntimeError(f"{what}: {type(error).__name__}: {error}") from error
        return actor.end.time_left

    def _route(self, pool: str, id: str, places: Any) -> Route:
        """One for all consumers of a pool; another if a durable one was opened again under another name."""
        route = self.routes.get(id)
        if route is None or route.pool != pool:
            route = self.routes[id] = Route(pool, [Place(*place) for place in places], id)
        return route

    async def order_stop(self, consumers: str, drain: bool) -> None:
        """That consumer pool is over here. With `drain`, answered when what runs has ended and is reported."""
        self._start_no_more(consumers)
        actor = self.consumers.get(consumers)
        if actor is not None:
            ending = self._stop(actor)
            await (asyncio.shield(ending) if drain else asyncio.sleep(0))

    def leave(self, actor: ConsumerActor) -> None:
        """The end of this worker's job is near: these consumers stop here, and others take their place."""
        logger.info("worker %s: its job ends soon, consumers of pool %s stop", self.worker.address, actor.pool)
        self._start_no_more(actor.id)
        self._stop(actor)
        self._spawn(self._tell_scheduler(do="leave", pool=actor.pool, consumers=actor.id, address=self.worker.address))

    def _start_no_more(self, consumers: str) -> None:
        self._stopped[consumers] = None
        if len(self._stopped) > REMEMBERED:
            del self._stopped[next(iter(self._stopped))]

    def _stop(self, actor: ConsumerActor) -> asyncio.Task[None]:
        ending = actor.stop()
        ending.add_done_callback(lambda _: self._ended(actor))
        return ending

    def _ended(self, actor: ConsumerActor) -> None:
        if self.consumers.get(actor.id) is actor:
            del self.consumers[actor.id]

    # -- for the consumers

    def book(self, uuid: str) -> LeaseBook:
        """The requests and leases of this worker at a queue."""
        book = self.books.get(uuid)
        if book is None:
            book = self.books[uuid] = LeaseBook(self.numbers)
        return book

    def route_of(self, route: Route) -> Route:
        """The one by which its pool is reached now."""
        return self.routes.get(route.id, route)

    def queue_lost(self, uuid: str, route: Route | None = None) -> None:
        """That life of a queue is over; whoever finds out says so here, and by which `route` it asked.

        A durable queue whose pool ended may be that of another route, by which it is reached.
        """
        if route is not None and self.route_of(route) is not route:
            return
        book = self.books.pop(uuid, None)
        if book is not None:
            book.queue_lost()
            for consumers in self.consumers.values():
                consumers.queue_lost(uuid)

    async def heartbeat(self, route: Route, index: int) -> None:
        """Tell a queue what is held and awaited there, if there is something to say."""
        uuid = route.places[index].uuid
        book = self.books.get(uuid)
        if book is None or not book.active:
            return
        held, open_, sent = book.heartbeat()
        news = {"owner": self.owner, "held": held, "open": open_, "sent": sent, "ttl": self._ttl_of(route.pool)}
        self._beats[uuid] = self._beats.get(uuid, 0) + 1
        try:
            cancels = await self.link.call(route, index, "heartbeat", uuid=uuid, patience=HEARTBEAT_S, **news)
            for lease, runs in cancels.items():
                for consumers in self.consumers.values():
                    consumers.cancel(uuid, lease, runs)
        except (QueueReplaced, PoolGone):
            self.queue_lost(uuid, route)
        except (QueueUnavailable, SchedulerGone):
            pass  # whoever leases there finds out
        except RemoteFailure as error:
            logger.warning("worker %s: a heartbeat failed: %s", self.worker.address, error)
        finally:
            self._beats[uuid] -= 1
            if not self._beats[uuid]:
                del self._beats[uuid]

    def _ttl_of(self, pool: str) -> int:
        """The same for all consumers of a pool."""
        return next((actor.ttl for actor in self.consumers.values() if actor.pool == pool), self.ttl)

    async def _beat(self) -> None:
        while not await self._silent_after(HEARTBEAT_S):
            try:
                self._beat_once()
            except Exception:  # without the next ones all that runs here would be taken for lost
                logger.exception("worker %s: a round of heartbeats failed", self.worker.address)

    def _beat_once(self) -> None:
        if self.worker.status != Status.running:  # Dask has paused it, or it leaves
            for actor in self.consumers.values():
                actor.leave_to_others()
        self._drop_routes()
        here = {place.uuid for route in self.routes.values() for place in route.places}
        for uuid in set(self.books) - here:
            self.queue_lost(uuid)
        for route in list(self.routes.values()):
            for index in range(len(route)):
                uuid = route.places[index].uuid
                if self._has_news(uuid) and uuid not in self._beats:  # a host that does not answer gets no more
                    self._spawn(self.heartbeat(route, index))

    async def _silent_after(self, seconds: float) -> bool:
        """Nobody here cancels the heartbeats: see `_beaten`."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._silent.wait(), seconds)
        return self._silent.is_set()

    def _beaten(self, beating: asyncio.Task[None]) -> None:
        if beating.cancelled():  # with all else here: also a closing that did not come to us, or that was not told
            end_of(self.worker)

    def _has_news(self, uuid: str) -> bool:
        book = self.books.get(uuid)
        return book is not None and book.active

    def _drop_routes(self) -> None:
        """Forget pools that nobody here consumes, once there is nothing to say to their queues any more."""
        used = {actor.route.id for actor in self.consumers.values()}
        for route in list(self.routes.values()):
            if route.id not in used and not any(self._has_news(place.uuid) for place in route.places):
                del self.routes[route.id]

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _resolve(self, pool: str, id: str) -> list[Place] | None:
        answer = await getattr(self.worker.scheduler, HANDLER)(do="resolve", pool=pool, id=id)
        if not answer or answer[0] != OK:
            raise OSError(f"the scheduler answered {answer!r}")
        return None if answer[1] is None else [Place(*place) for place in answer[1]]


def _worker_ttl() -> int:
    """Nanoseconds after which Dask itself gives a silent worker up."""
    ttl = dask.config.get("distributed.scheduler.worker-ttl", default=None)
    seconds = parse_timedelta(ttl) if ttl else None
    return int((300.0 if seconds is None else seconds) * 1e9)
