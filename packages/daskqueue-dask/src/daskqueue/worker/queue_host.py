"""The queues that this worker serves: finds the actor an operation names, and answers in the common form."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from daskqueue.wire.clock import edge_clock
from daskqueue.wire.operations import CODECS, ERROR, LOST, OK
from daskqueue.worker.queue_actor import Alive, QueueActor
from daskqueue_core.queue import Lease, TransientQueue

__all__ = ["QueueHost"]

logger = logging.getLogger(__name__)

Answer = tuple[Any, ...]


class QueueHost:
    """Queue actors by uuid."""

    def __init__(self, memory_limit: int | None = None) -> None:
        self._memory_limit = memory_limit
        self.actors: dict[str, QueueActor] = {}

    def open(self, uuid: str, epoch: int, options: Mapping[str, Any], expected: Collection[str]) -> None:
        """Serve a transient queue. Once: a repeated order changes nothing."""
        if uuid in self.actors:
            return
        ttl, max_bytes = options.get("result_ttl"), options.get("max_bytes")
        if max_bytes is None:  # a queue must not take the host's memory from the tasks
            max_bytes = (self._memory_limit or 0) // 4
        queue = TransientQueue(
            clock=edge_clock(),
            uuid=uuid,
            epoch=epoch,
            maxsize=options.get("maxsize", 0),
            max_bytes=max_bytes,
            result_ttl=None if ttl is None else int(ttl * 1e9),
            result_max_bytes=options.get("result_max_bytes"),
        )
        self.actors[uuid] = QueueActor(queue, expected=expected)

    async def drop(self, uuid: str) -> None:
        """That queue is over."""
        actor = self.actors.pop(uuid, None)
        if actor is not None:
            await actor.close()

    async def close(self) -> None:
        """All are over."""
        for uuid in list(self.actors):
            await self.drop(uuid)

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
            else:
                value = await getattr(actor, op)(**arguments)
        except Exception as error:
            logger.exception("queue %s failed at %s", uuid, op)
            return ERROR, type(error).__name__, str(error)
        if self.actors.get(uuid) is not actor:  # dropped while the call waited
            return (LOST,)
        return OK, value


async def _settle(actor: QueueActor, reports: Any) -> int:
    return sum([await actor.settle(lease, of_lease) for lease, of_lease in reports])


async def _lease(actor: QueueActor, *, reports: Any, alive: Alive | None, **arguments: Any) -> Lease | None:
    """Reports ride on the request for the next lease."""
    await _settle(actor, reports)
    return await actor.lease(alive=alive, near=alive is None, **arguments)
