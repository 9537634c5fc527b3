"""The queues that this worker serves: finds the actor an operation names, and answers in the common form."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

from daskqueue.wire.clock import edge_clock
from daskqueue.wire.operations import CODECS, ERROR, LOST, OK
from daskqueue.wire.recovery import Recovery
from daskqueue.worker.durable_actor import DurableActor, QueueOver
from daskqueue.worker.opening import open_durable
from daskqueue.worker.pool_files import queue_path
from daskqueue.worker.queue_actor import Alive, QueueActor
from daskqueue_core.handover import Epochs
from daskqueue_core.queue import Lease, TransientQueue
from daskqueue_storage import DurableQueue
from daskqueue_storage.errors import DiskFullError

__all__ = ["HostOrder", "QueueHost"]

logger = logging.getLogger(__name__)

Answer = tuple[Any, ...]


class HostOrder(NamedTuple):
    """What the directory says of a queue that is to be served here."""

    uuid: str
    epoch: int
    pool: str
    index: int  # type: ignore[assignment]  # hides tuple's method, unused in a record
    options: Mapping[str, Any]
    expected: Collection[str]
    owners: Collection[str]
    lost: Collection[str]


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
        self._found: dict[str, Recovery] = {}
        self._ending: set[asyncio.Future[None]] = set()
        self.actors: dict[str, QueueActor] = {}

    async def open(self, order: HostOrder) -> None:
        """Serve a queue; returns when it is. Once: a repeated order waits with the first, an older one is refused."""
        uuid = order.uuid
        served = self._served.get(uuid)
        if self._epochs.admits(uuid, order.epoch):
            self._epochs.saw(uuid, order.epoch)
            opening = asyncio.ensure_future(self._open(order, served))
            served = self._served[uuid] = _Served(order, opening)
        if served is None or served.order.epoch != order.epoch:
            raise RuntimeError(f"queue {uuid} is over here, or served in another life: epoch {order.epoch} has passed")
        await asyncio.shield(served.opening)

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
        options = order.options
        ttl, max_bytes = options.get("result_ttl"), options.get("max_bytes")
        if max_bytes is None:  # a queue must not take the host's memory from the tasks
            max_bytes = (self._memory_limit or 0) // 4
        queue = TransientQueue(
            clock=edge_clock(),
            uuid=order.uuid,
            epoch=order.epoch,
            maxsize=options.get("maxsize", 0),
            max_bytes=max_bytes,
            result_ttl=None if ttl is None else int(ttl * 1e9),
            result_max_bytes=options.get("result_max_bytes"),
        )
        return QueueActor(queue, expected=order.expected)

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
            ending = asyncio.ensure_future(self.drop(order.uuid, order.epoch))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
            self._over(order)

    async def drop(self, uuid: str, epoch: int) -> None:
        """That queue is over, up to `epoch`."""
        self._epochs.saw(uuid, epoch)
        served = self._served.get(uuid)
        if served is not None and served.order.epoch <= epoch:
            del self._served[uuid]
            await self._end(served)

    async def _end(self, served: _Served) -> None:
        """Close what was opened, and wait for what is being opened: it closes itself."""
        self._found.pop(served.order.uuid, None)
        actor = self.actors.pop(served.order.uuid, None)
        if actor is not None:
            await actor.close()
        await asyncio.wait([served.opening])

    async def close(self) -> None:
        """All are over."""
        drops = [self.drop(uuid, served.order.epoch) for uuid, served in self._served.items()]
        await asyncio.gather(*drops, *self._ending)

    async def owner_lost(self, owner: str) -> None:
        """Take back what `owner` held, in every queue."""
        for actor in list(self.actors.values()):
            await actor.owner_lost(owner)

    def local(self, uuid: str) -> Callable[[str, str, dict[str, Any]], Awaitable[Answer]] | None:
        """The way to call a queue of this worker without a message."""
        return self.call if uuid in self.actors else None

    async def handle(self, op: str, uuid: str, message: dict[str, Any], alive: Alive) -> Answer:
        """Answer a message."""
        codec = CODECS.get(op)
        if codec is None:
            return ERROR, "UnknownOperation", op
        answer = await self.call(op, uuid, codec.unpack(message), alive)
        return (OK, codec.pack_answer(answer[1])) if answer[0] == OK else answer

    async def call(self, op: str, uuid: str, arguments: dict[str, Any], alive: Alive | None = None) -> Answer:
        """Answer a call."""
        actor = self.actors.get(uuid)
        if actor is None:
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
        except QueueOver:
            return (LOST,)
        except DiskFullError as error:  # its caller's to deal with, and no fault of ours
            return ERROR, type(error).__name__, str(error)
        except Exception as error:
            logger.exception("queue %s failed at %s", uuid, op)
            return ERROR, type(error).__name__, str(error)
        if self.actors.get(uuid) is not actor:  # dropped while the call waited
            return (LOST,)
        return OK, value


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
