"""Cancelling: of single futures, of batches, of tasks by key. True means that it will not run, and no outcome comes.

What is still in the client's buffer ends here. What is under way is cancelled when its put is answered; what is in its
queue by one call there, which answers what has ended by it. What runs is asked to stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence, Set
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Final

from daskqueue.client.futures import FoundFuture, FutureSink, Sink, TaskFuture
from daskqueue.wire.link import PoolGone, QueueReplaced, SchedulerGone
from daskqueue_core.errors import DaskQueueError
from daskqueue_core.outcomes import End, Outcome
from daskqueue_core.producer import LostBatch

if TYPE_CHECKING:
    from daskqueue.client.pool_connection import PoolConnection

__all__ = ["Canceller"]

CANCEL_S: Final = 5.0
CANCEL_BATCHES: Final = 1000


class Canceller:
    """Cancels what one client has in one pool, and tasks by key."""

    def __init__(self, connection: PoolConnection) -> None:
        self._connection = connection
        self._session = connection.session
        self._submitter = connection.submitter
        self._streams = connection.streams

    # -- any thread

    def cancel_future(self, future: TaskFuture) -> bool:
        """Cancel one task; see `TaskFuture.cancel`."""
        if self._submitter.withdraw(future):
            return True
        return self._run(self._cancel_one(future)) > 0

    async def cancel_future_async(self, future: TaskFuture) -> bool:
        """As `cancel_future`, on the event loop."""
        if self._submitter.withdraw(future):
            return True
        return self._connection.error is None and await self._within(self._cancel_one(future), CANCEL_S) > 0

    def abandon(self, sink: Sink) -> None:
        """Nobody reads this any more: cancel what is left of it, without waiting."""
        if self._connection.error is None and self._session.alive:
            self._session.soon(lambda: self._session.spawn(self.cancel_all(sink)))

    def cancel_batch(self, batch: Sink) -> int:
        """Cancel what is left of a batch; returns how many tasks ended by it at once."""
        return self._run(self.cancel_all(batch))

    def _run(self, work: Coroutine[Any, Any, int]) -> int:
        if self._connection.error is not None:
            work.close()
            return 0
        if asyncio._get_running_loop() is not None:  # anybody's event loop: nothing may block there
            self._session.soon(self._session.spawn, work)
            return 0
        return self._session.run(self._within(work, CANCEL_S))

    # -- the event loop

    async def _cancel_one(self, future: TaskFuture) -> int:
        if not isinstance(future, FoundFuture):
            return await self._cancel_number(future.number)
        ended = await self._connection.administration.cancel_named([future.key])
        if ended:
            self._connection.finder.let_go(future)
            FutureSink([future]).lose(0, 1, CancelledError())
        return ended

    async def cancel_keys(self, keys: Sequence[str]) -> int:
        """Cancel tasks by key, whoever submitted them; how many ended by it at once. Unknown ones are left out.

        What is under way comes last, and is not waited for too long: its put may wait for room.
        """
        mine = {number: key for key in keys if (number := self._connection.own_number(key)) is not None}
        taken = self._submitter.withdraw_numbers(mine)
        self._submitter.offer()
        under_way: set[int] = set()
        for number in mine.keys() - taken:
            back = self._take_back(number)
            if back is None:
                under_way.add(number)
            elif back:
                taken.add(number)
        for number in mine.keys() - taken - under_way:
            if (found := self._locate(number)) is not None:
                index, first, at = found
                self._streams[index].ask_cancel(first, at, at + 1)
        apart = {mine[number] for number in taken | under_way}
        administration = self._connection.administration
        ended = len(taken) + await administration.cancel_named([key for key in keys if key not in apart])
        if under_way:
            ended += await self._within(self._cancel_when_answered(under_way, mine), CANCEL_S)
        return ended

    def _take_back(self, number: int) -> bool | None:
        """Take back what was not sent. False: it is in its queue, as far as that took it; None: it is on its way."""
        found = self._locate(number)
        if found is None:
            return False
        index, first, at = found
        lost = self._streams[index].take_back(first, at, at + 1)
        if lost is not None:
            return self._taken_back([lost]) > 0
        return None if first in self._streams[index].under_way else False

    async def _cancel_when_answered(self, numbers: Set[int], keys: Mapping[int, str]) -> int:
        while any(self._take_back(number) is None for number in numbers):
            await self._submitter.answered()
        return await self._connection.administration.cancel_named([keys[number] for number in numbers])

    async def _cancel_number(self, number: int) -> int:
        self._submitter.offer()
        while (found := self._locate(number)) is not None:
            index, first, at = found
            stream = self._streams[index]
            lost = stream.take_back(first, at, at + 1)
            if lost is not None:
                return self._taken_back([lost])
            if first not in stream.under_way:
                return await self._cancel_tasks(index, [(first, at, at + 1)])
            await self._submitter.answered()
        return 0

    def _locate(self, number: int) -> tuple[int, int, int] | None:
        for index, stream in enumerate(self._streams):
            found = stream.locate(number)
            if found is not None:
                return index, *found
        return None

    async def cancel_all(self, sink: Sink | None) -> int:
        """Cancel what is left of `sink` (None: of everything submitted here); how many ended by it at once.

        What was not sent is taken back, so that a full queue takes nothing that is to be cancelled. What is under way
        is cancelled when its put is answered: the cancelled ones before it make room.
        """
        count = self._submitter.take_back(sink)
        asked: set[int] = set()
        while self._connection.error is None:
            count += self._taken_back([lost for stream in self._streams for lost in stream.take_back_all(sink)])
            under_way = False
            for index, stream in enumerate(self._streams):
                unknown, pending = stream.under_way, stream.pending_of(sink)
                under_way |= any(first in unknown for first, _ in pending)
                tasks = [(first, 0, size) for first, size in pending if first not in unknown and first not in asked]
                asked.update(first for first, _, _ in tasks)
                for at in range(0, len(tasks), CANCEL_BATCHES):
                    count += await self._cancel_tasks(index, tasks[at : at + CANCEL_BATCHES])
            if not under_way:
                break
            if not any(first in stream.under_way for stream in self._streams for first, _ in stream.pending_of(sink)):
                continue  # answered meanwhile
            await self._submitter.answered()
        return count

    async def cancel_everything(self) -> None:
        """Before the end: as `cancel_all`, but what waits for room does not keep the end waiting for ever."""
        await self._within(self.cancel_all(None), CANCEL_S)

    def _taken_back(self, lost: Sequence[LostBatch]) -> int:
        """These were never sent; how many messages that were."""
        for batch in lost:
            for lo, hi in batch.runs:
                batch.sink.lose(batch.shift + lo, batch.shift + hi, CancelledError())
        if lost:
            self._submitter.taken_back()
            self._connection.collector.check_quiet()
        return sum(hi - lo for batch in lost for lo, hi in batch.runs)

    async def _within(self, work: Coroutine[Any, Any, int], seconds: float) -> int:
        """What `work` returns, or 0 after so many seconds; it goes on then."""
        task = self._session.spawn(work)
        done, _ = await asyncio.wait([task], timeout=seconds)
        return task.result() if done else 0

    async def _cancel_tasks(self, index: int, tasks: list[tuple[int, int, int]]) -> int:
        stream = self._streams[index]
        for first, lo, hi in tasks:
            stream.ask_cancel(first, lo, hi)
        try:
            route, client = self._connection.route, self._connection.client_id
            ended = await self._session.link.call(
                route, index, "cancel_tasks", uuid=stream.uuid, client=client, tasks=tasks
            )
        except (QueueReplaced, PoolGone, SchedulerGone, DaskQueueError):
            return 0  # with its queue, which ends them too
        outcomes = tuple(Outcome(first, lo, hi - lo, end=End.CANCELLED) for first, lo, hi in ended)
        self._connection.collector.absorb(stream, outcomes)  # without waiting for the next poll
        return sum(hi - lo for _, lo, hi in ended)
