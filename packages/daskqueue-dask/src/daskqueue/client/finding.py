"""Tasks that are asked for by their keys, whoever submitted them: subscriptions at their queues.

A queue tells a subscriber how a task ends, or ended, as it tells a producer: by the poll, addressed as message `index`
of a batch that the subscriber numbered. Such numbers are of no task. What a lost life of a queue knew is asked of this
client's memory.

Everything here runs on the client's event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from daskqueue.client.futures import FoundFuture, FutureSink
from daskqueue.client.naming import Named, parse_key
from daskqueue.utils import logger
from daskqueue.wire.link import PoolGone, QueueReplaced, SchedulerGone
from daskqueue_core.errors import DaskQueueError, QueueLost, ResultExpired
from daskqueue_core.names import TaskName
from daskqueue_core.outcomes import Outcome
from daskqueue_core.producer import Delivery
from daskqueue_core.protocols import Known

if TYPE_CHECKING:
    from daskqueue.client.pool_connection import PoolConnection

__all__ = ["Finder"]

ASKED_AT_ONCE: Final = 32
"""Each is a connection: thousands at once would keep the host of a queue from answering any before its time is over."""


class _Asked(NamedTuple):
    """A future that waits for a task of a queue."""

    future: FoundFuture
    name: TaskName
    queue: int


class Finder:
    """Finds the tasks of one pool by key."""

    def __init__(self, connection: PoolConnection) -> None:
        self._connection = connection
        self._asked: dict[int, _Asked] = {}  # by the number that stands for the subscription

    # -- what comes in

    def take(self, outcomes: Sequence[Outcome]) -> None:
        """Outcomes came; those of subscriptions are for the futures that wait for them."""
        for outcome in outcomes if self._asked else ():
            asked = self._asked.pop(outcome.first, None)
            if asked is not None:
                _deliver(asked.future, outcome)

    def over(self, error: BaseException) -> None:
        """The pool is over."""
        asked, self._asked = self._asked, {}
        for each in asked.values():
            FutureSink([each.future]).lose(0, 1, error)

    def let_go(self, future: FoundFuture) -> None:
        """It ended otherwise."""
        self._asked.pop(future.number, None)

    async def replaced(self, index: int) -> None:
        """Queue `index` has another life. What this client has put again, it knows; what it cannot, is lost."""
        for number, asked in [(number, asked) for number, asked in self._asked.items() if asked.queue == index]:
            try:
                await self._connection.submitter.flush()
                known = await self._subscribe(number, index, asked.name)
            except (PoolGone, SchedulerGone, DaskQueueError) as error:
                logger.debug("task %s was not asked for again: %s", asked.future.key, error)
                return  # whoever meets this on the streams deals with it
            if known != Known.KNOWN and self._asked.pop(number, None) is not None:
                self._remembered(asked.future, QueueLost(f"task {asked.future.key} was lost with its queue's host"))

    # -- what is asked

    async def find(self, key: str) -> FoundFuture:
        """The future of the task `key`. KeyError if nobody knows it."""
        connection = self._connection
        named = parse_key(key)
        if connection.has_buffered(key):
            await connection.submitter.flush()
            connection.check()
        future = await self._ask(key, named)
        if future is None:
            raise KeyError(
                f"pool {connection.name} has no task {key!r}: it was never submitted here, or it is forgotten"
            )
        return future

    async def ended(self, keys: Sequence[str]) -> list[FoundFuture]:
        """Futures of those tasks that have ended, in order; nobody waits for the others."""
        found: list[FoundFuture | None] = []
        for at in range(0, len(keys), ASKED_AT_ONCE):
            some = keys[at : at + ASKED_AT_ONCE]
            found += await asyncio.gather(*(self._ask(key, parse_key(key)) for key in some))
        futures = [future for future in found if future is not None]
        for index in {self._asked[future.number].queue for future in futures if future.number in self._asked}:
            await self._connection.collector.collect(index)
        pending: dict[int, list[tuple[int, int, int]]] = {}
        for future in futures:
            asked = self._asked.pop(future.number, None)
            if asked is not None:
                pending.setdefault(asked.queue, []).append((future.number, 0, 1))
        for index, tasks in pending.items():
            await self._connection.call(index, "cancel_tasks", client=self._connection.client_id, tasks=tasks)
        return [future for future in futures if future.done()]

    async def _ask(self, key: str, named: Named) -> FoundFuture | None:
        connection = self._connection
        future = self._future(key)
        number = future.number
        queues = range(len(connection.route)) if named.everywhere else [connection.queue_of(key, named)]
        asking = [self._subscribe(number, index, named.name, named.uuid) for index in queues if index is not None]
        self._asked[number] = _Asked(future, named.name, queues[0] or 0)
        try:
            answers = dict(zip(queues, await asyncio.gather(*asking)))
        except BaseException:
            self._asked.pop(number, None)
            raise
        for index, known in answers.items():
            if known == Known.KNOWN:
                asked = self._asked.get(number)
                if asked is not None:
                    self._asked[number] = asked._replace(queue=index or 0)
                return future
        self._asked.pop(number, None)
        expired = ResultExpired(
            f"the result of task {key} is not kept: result_ttl is over, it was too much or was purged, or it was never"
            " kept for other readers (map, submit_many, QueueExecutor, store_result=False)"
        )
        if self._remembered(future, expired if Known.EXPIRED in answers.values() else None):
            return future
        return None

    def _future(self, key: str) -> FoundFuture:
        """The number of a subscription is that of no task, so that the key alone says which one this is."""
        return FoundFuture(self._connection, self._connection.session.numbers(1), threading.Condition(), key)

    def _remembered(self, future: FoundFuture, otherwise: BaseException | None) -> bool:
        """End a future with what this client remembers of its task, or `otherwise`. False: with neither."""
        found = self._connection.remembered(future.key)
        if found is not None:
            outcome, position = found
            _deliver(future, outcome._replace(accepted=((position, position + 1),)))
        elif otherwise is not None:
            FutureSink([future]).lose(0, 1, otherwise)
        return found is not None or otherwise is not None

    async def _subscribe(self, number: int, index: int, name: TaskName, uuid: str = "") -> int:
        connection = self._connection
        arguments = {"uuid": uuid} if uuid else {}
        try:
            answer = await connection.call(
                index, "subscribe", client=connection.client_id, first=number, names=[name], **arguments
            )
        except QueueReplaced:
            return Known.UNKNOWN
        return int(answer[0])


def _deliver(future: FoundFuture, outcome: Outcome) -> None:
    """`outcome` has one accepted message, which is that of the future."""
    position, _ = outcome.runs[0]
    FutureSink([future]).deliver(Delivery(None, -position, outcome.runs, outcome))
