"""The queues that this worker serves: finds the actor an operation names, and answers in the common form.

A queue is served under the epoch of the order that brought it here; operations name that, so that nobody who has not
heard of a move speaks to the queue. Not here: how a queue that is handed over travels (`wire.moving`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

from daskqueue.wire.clock import edge_clock
from daskqueue.wire.moving import MovingQueue, Piece
from daskqueue.wire.operations import CODECS, ERROR, LOST, OK
from daskqueue.wire.recovery import Recovery
from daskqueue.worker.departures import Departures
from daskqueue.worker.durable_actor import DurableActor, QueueOver
from daskqueue.worker.opening import open_durable
from daskqueue.worker.pool_files import queue_path
from daskqueue.worker.queue_actor import Alive, QueueActor
from daskqueue_core.handover import Epochs, QueueMoved
from daskqueue_core.queue import Lease, TransientQueue
from daskqueue_storage import DurableQueue
from daskqueue_storage.errors import DiskFullError

__all__ = ["HostOrder", "OrderRefused", "QueueHost"]

logger = logging.getLogger(__name__)

Answer = tuple[Any, ...]


class OrderRefused(Exception):
    """An order that was overtaken, or came to a worker that leaves: others deal with it."""


class HostOrder(NamedTuple):
    """What the directory says of a queue that is to be served here."""

    uuid: str
    epoch: int
    pool: str
    index: int  # type: ignore[assignment]  # hides tuple's method, unused in a record
    options: Mapping[str, Any]
    expected: Collection[str] = ()
    owners: Collection[str] = ()
    lost: Collection[str] = ()


class _Served(NamedTuple):
    """A queue that is served here, or about to be."""

    order: HostOrder
    opening: asyncio.Task[None]


class QueueHost:
    """Queue actors by uuid. `over` hears of a queue that cannot be served here any more."""

    def __init__(self, owner: str, over: Callable[[HostOrder], None], memory_limit: int | None = None) -> None:
        self._owner = owner
        self._over = over
        self._memory_limit = memory_limit
        self._epochs = Epochs()
        self._served: dict[str, _Served] = {}
        self._departures = Departures()
        self._taking: dict[tuple[str, int], asyncio.Future[list[str]]] = {}  # by uuid and epoch
        self._found: dict[str, Recovery] = {}
        self._ending: set[asyncio.Future[None]] = set()
        self._closed = False
        self.actors: dict[str, QueueActor] = {}

    async def open(self, order: HostOrder) -> None:
        """Serve a queue; returns when it is. Once: a repeated order waits with the first, an older one is refused."""
        uuid = order.uuid
        served = self._served.get(uuid)
        if self._admits(order):
            self._epochs.saw(uuid, order.epoch)
            opening = asyncio.ensure_future(self._open(order, served))
            served = self._served[uuid] = _Served(order, opening)
        if served is None or served.order.epoch != order.epoch:
            raise self._passed(order)
        await asyncio.shield(served.opening)

    def _admits(self, order: HostOrder) -> bool:
        return not self._closed and self._epochs.admits(order.uuid, order.epoch)

    def _passed(self, order: HostOrder) -> OrderRefused:
        if self._closed:
            return OrderRefused("this worker leaves")
        return OrderRefused(
            f"queue {order.uuid} is over here, or served in another life: epoch {order.epoch} has passed"
        )

    async def _open(self, order: HostOrder, before: _Served | None) -> None:
        uuid = order.uuid
        if before is not None:  # it was served here, and is lost: its disk failed, say
            await self._end(before)
        durable = order.options.get("dirpath") is not None
        actor = await self._open_durable(order) if durable else self._make_transient(order)
        if self._served.get(uuid) is None or self._served[uuid].order is not order:  # dropped meanwhile
            await actor.close()
            return
        self.actors[uuid] = actor

    def _make_transient(self, order: HostOrder) -> QueueActor:
        queue = TransientQueue(clock=edge_clock(), uuid=order.uuid, epoch=order.epoch, **self._room(order.options))
        return QueueActor(queue, expected=order.expected)

    def _room(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What a queue in memory may take here."""
        ttl, max_bytes = options.get("result_ttl"), options.get("max_bytes")
        if max_bytes is None:  # a queue must not take the host's memory from the tasks
            max_bytes = (self._memory_limit or 0) // 4
        return {
            "maxsize": options.get("maxsize", 0),
            "max_bytes": max_bytes,
            "result_ttl": None if ttl is None else int(ttl * 1e9),
            "result_max_bytes": options.get("result_max_bytes"),
        }

    async def take_over(self, order: HostOrder, fetch: Callable[[], Awaitable[MovingQueue | None]]) -> list[str]:
        """Serve a queue as its host did that handed it over; returns who holds leases there.

        Once, as `open`. `fetch` brings it, or None if it is not to be had.
        """
        key = order.uuid, order.epoch
        taking = self._taking.get(key)
        if taking is None:
            taking = self._taking[key] = asyncio.ensure_future(self._take_over(order, fetch))
            taking.add_done_callback(lambda _: self._taking.pop(key))
        return await asyncio.shield(taking)

    async def _take_over(self, order: HostOrder, fetch: Callable[[], Awaitable[MovingQueue | None]]) -> list[str]:
        uuid = order.uuid
        served = self._served.get(uuid)
        if served is None or served.order.epoch != order.epoch:
            if not self._admits(order):
                raise self._passed(order)
            moving = await fetch()
            if not self._admits(order):  # it was called off meanwhile
                raise self._passed(order)
            if moving is None:
                raise OrderRefused(f"queue {uuid} is not there any more")
            room = self._room(order.options)
            queue = TransientQueue.take_over(moving.state, clock=edge_clock(), epoch=order.epoch, **room)
            self._epochs.saw(uuid, order.epoch)
            self._departures.drop(uuid, order.epoch)
            self.actors[uuid] = QueueActor(queue, before=moving)
            self._served[uuid] = _Served(order, asyncio.ensure_future(asyncio.sleep(0)))  # there is nothing to open
        return self.actors[uuid].queue.owners()

    async def hand_over(self, uuid: str, epoch: int, first: int) -> Piece | None:
        """A piece of a queue, from frame `first`, for whoever serves it under `epoch`. None: it is not to be had here.

        From the first piece on it is not served here any more.
        """
        if self._closed or not self._epochs.admits(uuid, epoch):
            return None
        actor = self.actors.get(uuid)
        if actor is not None:
            moving = actor.hand_over()
            self._departures.add(uuid, self._served.pop(uuid).order.epoch, moving)
            del self.actors[uuid]
        return await self._departures.piece(uuid, first) if uuid in self._departures else None

    async def _open_durable(self, order: HostOrder) -> QueueActor:
        path = queue_path(order.options["dirpath"], order.index)
        queue = await open_durable(
            path, order.uuid, order.options, owner=self._owner, owners=order.owners, lost=order.lost
        )
        found = await asyncio.to_thread(_found, queue)
        logger.info("queue %d of pool %s: %s", order.index, order.pool, found)
        self._found[order.uuid] = found
        return DurableActor(queue, on_over=partial(self._is_over, order))

    def _is_over(self, order: HostOrder, error: Exception) -> None:
        """A durable queue cannot be served any more: somebody else has its directory, or the disk failed."""
        logger.warning("queue %d of pool %s is not served here any more: %s", order.index, order.pool, error)
        served = self._served.get(order.uuid)
        if served is not None and served.order is order:
            dropping = asyncio.ensure_future(self.drop(order.uuid, order.epoch))
            self._ending.add(dropping)
            dropping.add_done_callback(self._ending.discard)
            self._over(order)

    async def drop(self, uuid: str, epoch: int) -> None:
        """That queue is over, up to `epoch`."""
        self._epochs.saw(uuid, epoch)
        self._departures.drop(uuid, epoch)
        served = self._served.get(uuid)
        if served is not None and served.order.epoch <= epoch:
            del self._served[uuid]
            await asyncio.shield(self._end(served))

    def _end(self, served: _Served) -> asyncio.Future[None]:
        """Close what was opened, and wait for what is being opened: it closes itself."""
        self._found.pop(served.order.uuid, None)
        ending = asyncio.ensure_future(_close(self.actors.pop(served.order.uuid, None), served.opening))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        return ending

    async def close(self) -> None:
        """All are over, and none comes any more."""
        self._closed = True
        self._departures.clear()
        drops = [self.drop(uuid, served.order.epoch) for uuid, served in self._served.items()]
        await _each("a queue was not closed in order", *drops, *self._ending)

    async def owner_lost(self, owner: str) -> None:
        """Take back what `owner` held, in every queue."""
        releases = [actor.owner_lost(owner) for actor in self.actors.values()]
        await _each(f"a queue did not take back what {owner} held, which is gone", *releases)

    def local(self, uuid: str) -> Callable[[str, str, int, dict[str, Any]], Awaitable[Answer]] | None:
        """The way to call a queue of this worker without a message."""
        return self.call if uuid in self.actors else None

    async def handle(self, op: str, uuid: str, epoch: int, message: dict[str, Any], alive: Alive) -> Answer | list[Any]:
        """Answer a message; a list, if it may hold frames."""
        codec = CODECS.get(op)
        if codec is None:
            return ERROR, "UnknownOperation", op
        answer = await self.call(op, uuid, epoch, codec.unpack(message), alive)
        return [OK, codec.pack_answer(answer[1])] if answer[0] == OK else answer

    async def call(
        self, op: str, uuid: str, epoch: int, arguments: dict[str, Any], alive: Alive | None = None
    ) -> Answer:
        """Answer a call."""
        actor = self.actors.get(uuid)
        if actor is None or self._served[uuid].order.epoch != epoch:
            return (LOST,)
        try:
            if op == "lease":
                value: Any = await _lease(actor, alive=alive, **arguments)
            elif op == "settle":
                value = await _settle(actor, **arguments)
            elif op == "recovery":
                value = self._found.get(uuid)
            else:
                value = await getattr(actor, op)(**arguments)
        except (QueueOver, QueueMoved):
            return (LOST,)
        except DiskFullError as error:  # its caller's to deal with, and no fault of ours
            return ERROR, type(error).__name__, str(error)
        except Exception as error:
            logger.exception("queue %s failed at %s", uuid, op)
            return ERROR, type(error).__name__, str(error)
        if self.actors.get(uuid) is not actor:  # dropped while the call waited
            return (LOST,)
        return OK, value


async def _each(trouble: str, *doing: Awaitable[object]) -> None:
    """Await all of them: one that fails, which is logged as `trouble`, or hangs holds up no other."""
    for outcome in await asyncio.gather(*doing, return_exceptions=True):
        if isinstance(outcome, Exception) and not isinstance(outcome, (QueueOver, QueueMoved)):
            logger.error("%s: %s", trouble, outcome, exc_info=outcome)


async def _close(actor: QueueActor | None, opening: asyncio.Task[None]) -> None:
    if actor is not None:
        await actor.close()
    await asyncio.wait([opening])


def _found(queue: DurableQueue) -> Recovery:
    """What opening a queue has found; not on the event loop."""
    stats, report = queue.stats(), queue.report
    return Recovery(
        stats.ready + stats.scheduled, stats.delivered, queue.taken_back, stats.acked, stats.failed, report.clean,
        report.whole, str(report), report.seconds,
    )  # fmt: skip


async def _settle(actor: QueueActor, reports: Any) -> int:
    return sum([await actor.settle(lease, of_lease) for lease, of_lease in reports])


async def _lease(actor: QueueActor, *, reports: Any, alive: Alive | None, **arguments: Any) -> Lease | None:
    """Reports ride on the request for the next lease."""
    await _settle(actor, reports)
    return await actor.lease(alive=alive, near=alive is None, **arguments)
