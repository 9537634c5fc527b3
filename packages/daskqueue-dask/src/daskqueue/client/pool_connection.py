"""One pool, seen from one client: its streams out and in, and what happens when a queue is lost or the pool ends."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Collection, Coroutine, Sequence
from concurrent.futures import CancelledError
from typing import Any, Final

from daskqueue.client.collector import Collector
from daskqueue.client.futures import Sink, TaskFuture
from daskqueue.client.item_door import put_now
from daskqueue.client.session import Session
from daskqueue.client.submitter import Submitter, most_in_a_put
from daskqueue.client.timeouts import WaitTimeout
from daskqueue.utils import logger
from daskqueue.wire import nested
from daskqueue.wire.link import PoolGone, QueueReplaced, Route, SchedulerGone
from daskqueue.wire.operations import OK
from daskqueue_core.balancer import RoundRobin
from daskqueue_core.batch import Batch, Kind
from daskqueue_core.errors import DaskQueueError, PoolClosed, QueueLost
from daskqueue_core.joining import JoinRounds
from daskqueue_core.outcomes import End, KeptResults, Outcome
from daskqueue_core.producer import LostBatch, ProducerStream
from daskqueue_core.stats import QueueStats

__all__ = ["PoolConnection"]

JOIN_WAIT_S: Final = 20.0
CANCEL_S: Final = 5.0
ANSWER_S: Final = 5.0  # what a host may take to answer a put that does not wait for room
GRACE_S: Final = 0.25  # beyond a caller's timeout, for the answer that there was no room
CANCEL_BATCHES: Final = 1000
ASK_AGAIN_S: Final = 0.25


class PoolConnection:
    """What a `QueuePool` object works with. Built and used on the client's event loop, but for `submitter.submit`."""

    def __init__(self, session: Session, name: str, route: Route, options: dict[str, Any]) -> None:
        self.session = session
        self.callbacks = session.callbacks
        self.client_id = session.id
        self.name = name
        self.route = route
        self.options = options
        self.error: BaseException | None = None
        self._items_lost = 0
        ttl = options["result_ttl"]
        self._kept = KeptResults(ttl=None if ttl is None else int(ttl * 1e9), max_bytes=options["result_max_bytes"])
        maxsize = options["maxsize"]
        most = most_in_a_put(maxsize, options["on_full"])
        self.streams = [
            ProducerStream(place.uuid, lambda: secrets.randbits(64), maxsize=most) for place in route.places
        ]
        self.submitter = Submitter(session, route, self.streams, self, maxsize=maxsize, on_full=options["on_full"])
        self._door_balancer = RoundRobin(len(route), start=session.id)
        self.collector = Collector(session, route, self.streams, self, self._remember)

    def start(self) -> None:
        """Begin to listen."""
        self.collector.start()
        self.session.watch(self.over)

    async def call(self, index: int, op: str, **arguments: Any) -> Any:
        """Call an operation of one queue, whichever life it has; `QueueUnavailable` after `rehost_timeout`."""
        self.check()
        patience = self.options["rehost_timeout"]
        try:
            return await self.session.link.call(self.route, index, op, patience=patience, **arguments)
        except (PoolGone, SchedulerGone) as error:
            self.over(error)
            self.check()
            raise

    def check(self) -> None:
        """Raise what ended the pool, if it ended."""
        if self.error is not None:
            raise self.error

    def refuse(self) -> None:
        """Take nothing more; what was taken is done."""
        self.submitter.refuse(PoolClosed(f"pool {self.name} was shut down: make a new one"))

    @property
    def buffered(self) -> bool:
        """Whether something has not reached its queue yet."""
        return self.error is None and self.submitter.buffered

    def flush_now(self) -> None:
        """Wait until it has, but not for ever: a task may have filled the queue that it came from."""
        self.session.run(self._flush_for(nested.FLUSH_S))

    async def _flush_for(self, seconds: float) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.submitter.flush(), seconds)

    async def put(self, batches: Sequence[Batch], wait: float | None) -> None:
        """Put items; `wait` seconds at most for room (None: as long as it takes)."""
        self.check()
        if wait is None and self.options["on_full"] == "wait":
            await asyncio.gather(*map(self.submitter.send_and_wait, batches))
            return
        until = asyncio.get_running_loop().time() + (wait or 0.0)
        for batch in batches:
            index = self._door_balancer.pick()
            left = max(0.0, until - asyncio.get_running_loop().time())
            patience = left + GRACE_S if wait else ANSWER_S
            work = put_now(self.session.link, self.route, index, batch, wait=left, patience=patience)
            try:
                await asyncio.wait_for(work, patience)
            except asyncio.TimeoutError:
                place = self.route.places[index]
                raise WaitTimeout(
                    f"{place.address}, host of queue {index} of {self.name}, did not accept the items in time"
                ) from None
            except (PoolGone, SchedulerGone) as error:
                self.over(error)
                self.check()
                raise
            self.streams[index].items_accepted += batch.count

    # -- losses

    async def replaced(self, index: int) -> None:
        """Queue `index` was lost with its host and has another life: put again what is unfinished.

        Returns when the stream speaks for the new life, or is to be asked again.
        """
        stream, uuid = self.streams[index], self.route.places[index].uuid
        if stream.uuid == uuid or self.error is not None:
            return
        resubmit = self.options["on_queue_lost"] == "resubmit" and not await self._early_ack()
        if stream.uuid == uuid or self.route.places[index].uuid != uuid or self.error is not None:
            return
        self._items_lost += stream.items_accepted
        stream.items_accepted = 0
        lost = stream.queue_lost(uuid, resubmit=resubmit)
        logger.warning("queue %d of pool %s was lost with its host; another worker has it now", index, self.name)
        for batch in lost:
            self._lose(batch, resubmit)
        self.submitter.recount()
        self.submitter.kick(index)
        self.collector.check_quiet()
        self.submitter.go_on()
        self.session.spawn(self._say_resubmitted(index, uuid))

    async def _say_resubmitted(self, index: int, uuid: str) -> None:
        try:
            await self.submitter.flush()
            await self.session.link.call(self.route, index, "resubmitted", uuid=uuid, client=self.session.client_id)
        except (QueueReplaced, PoolGone, SchedulerGone, DaskQueueError):
            pass  # whoever meets this on the streams deals with it

    async def _early_ack(self) -> bool:
        """Whether a consumer of the pool acknowledges early: what may have run must not run again."""
        while self.error is None:
            try:
                answer = await self.session.ask("served", pool=self.name)
            except OSError:  # only the directory's word makes a loss
                await asyncio.sleep(ASK_AGAIN_S)
            except PoolClosed:
                break
            else:
                return bool(answer[0] != OK or answer[1][1])
        return True

    def _lose(self, batch: LostBatch, resubmit: bool) -> None:
        if resubmit:
            why = f"it was put again {batch.resent} times and its queue was lost each time"
        else:
            why = "the queue was lost with its host, and it must not be put again"
        for lo, hi in batch.runs:
            shift = batch.shift
            batch.sink.lose(shift + lo, shift + hi, QueueLost(f"pool {self.name}: {why}"))

    def over(self, error: BaseException) -> None:
        """Nothing more will come: every future ends."""
        if self.error is not None:
            return
        if isinstance(error, PoolClosed):
            why = str(error)
        elif isinstance(error, PoolGone):
            why = "it was shut down"
        elif isinstance(error, SchedulerGone):
            why = "the Dask scheduler is gone, or the client was closed"
        else:
            why = str(error)
        self._end(PoolClosed(f"pool {self.name} is over: {why}"), QueueLost(f"pool {self.name} is over: {why}"))

    def close(self, outcome: BaseException) -> None:
        """The pool was shut down here; what is unfinished ends with `outcome`."""
        if self.error is None:
            self._end(PoolClosed(f"pool {self.name} was shut down: make a new one"), outcome)

    def _end(self, error: BaseException, outcome: BaseException) -> None:
        self.error = error
        if self.session.pools.get(self.name) is self:
            del self.session.pools[self.name]
        self.session.unwatch(self.over)
        self.collector.close()
        self.submitter.close(error, outcome)
        for stream in self.streams:
            for batch in stream.abandon():
                for lo, hi in batch.runs:
                    batch.sink.lose(batch.shift + lo, batch.shift + hi, outcome)

    # -- cancelling

    def cancel_future(self, future: TaskFuture) -> bool:
        """Cancel one task; see `TaskFuture.cancel`."""
        if self.submitter.withdraw(future):
            return True
        return self._cancel(self._cancel_number(future.number)) > 0

    async def cancel_future_async(self, future: TaskFuture) -> bool:
        """As `cancel_future`, on the event loop."""
        if self.submitter.withdraw(future):
            return True
        return self.error is None and await self._within(self._cancel_number(future.number), CANCEL_S) > 0

    def abandon(self, sink: Sink) -> None:
        """Nobody reads this any more: cancel what is left of it, without waiting."""
        if self.error is None and self.session.alive:
            self.session.soon(lambda: self.session.spawn(self.cancel_all(sink)))

    def cancel_batch(self, batch: Sink) -> int:
        """Cancel what is left of a batch; returns how many tasks ended by it at once."""
        return self._cancel(self.cancel_all(batch))

    def _cancel(self, work: Coroutine[Any, Any, int]) -> int:
        if self.error is not None:
            work.close()
            return 0
        if asyncio._get_running_loop() is not None:  # anybody's event loop: nothing may block there
            self.session.soon(self.session.spawn, work)
            return 0
        return self.session.run(self._within(work, CANCEL_S))

    async def _cancel_number(self, number: int) -> int:
        self.submitter.offer()
        while (found := self._locate(number)) is not None:
            index, first, at = found
            stream = self.streams[index]
            lost = stream.take_back(first, at, at + 1)
            if lost is not None:
                return self._taken_back([lost])
            if first not in stream.under_way:
                return await self._cancel_tasks(index, [(first, at, at + 1)])
            await self.submitter.answered()
        return 0

    def _locate(self, number: int) -> tuple[int, int, int] | None:
        for index, stream in enumerate(self.streams):
            found = stream.locate(number)
            if found is not None:
                return index, *found
        return None

    async def cancel_all(self, sink: Sink | None) -> int:
        """Cancel what is left of `sink` (None: of everything submitted here); how many ended by it at once.

        What was not sent is taken back, so that a full queue takes nothing that is to be cancelled. What is under way
        is cancelled when its put is answered: the cancelled ones before it make room.
        """
        count = self.submitter.take_back(sink)
        asked: set[int] = set()
        while self.error is None:
            count += self._taken_back([lost for stream in self.streams for lost in stream.take_back_all(sink)])
            under_way = False
            for index, stream in enumerate(self.streams):
                unknown, pending = stream.under_way, stream.pending_of(sink)
                under_way |= any(first in unknown for first, _ in pending)
                tasks = [(first, 0, size) for first, size in pending if first not in unknown and first not in asked]
                asked.update(first for first, _, _ in tasks)
                for at in range(0, len(tasks), CANCEL_BATCHES):
                    count += await self._cancel_tasks(index, tasks[at : at + CANCEL_BATCHES])
            if not under_way:
                break
            if not any(first in stream.under_way for stream in self.streams for first, _ in stream.pending_of(sink)):
                continue  # answered meanwhile
            await self.submitter.answered()
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
            self.submitter.taken_back()
            self.collector.check_quiet()
        return sum(hi - lo for batch in lost for lo, hi in batch.runs)

    async def _within(self, work: Coroutine[Any, Any, int], seconds: float) -> int:
        """What `work` returns, or 0 after so many seconds; it goes on then."""
        task = self.session.spawn(work)
        done, _ = await asyncio.wait([task], timeout=seconds)
        return task.result() if done else 0

    async def _cancel_tasks(self, index: int, tasks: list[tuple[int, int, int]]) -> int:
        stream = self.streams[index]
        try:
            ended = await self.session.link.call(
                self.route, index, "cancel_tasks", uuid=stream.uuid, client=self.client_id, tasks=tasks
            )
        except (QueueReplaced, PoolGone, SchedulerGone, DaskQueueError):
            return 0  # what is put again runs
        outcomes = tuple(Outcome(first, lo, hi - lo, end=End.CANCELLED) for first, lo, hi in ended)
        for delivery in stream.absorb(outcomes):  # without waiting for the next poll
            delivery.sink.deliver(delivery)
        self.collector.check_quiet()
        return sum(hi - lo for _, lo, hi in ended)

    # -- waiting and reading

    async def join(self, deadline: float | None, kinds: Collection[int] = tuple(Kind)) -> None:
        """Wait until every queue of the pool is done, in two rounds that agree, and this client has every outcome.

        With fewer `kinds` only for those: what no consumer serves would never be done.
        """
        work = self._join(kinds)
        if deadline is None:
            await work
            return
        left = max(0.0, deadline - asyncio.get_running_loop().time())
        try:
            await asyncio.wait_for(work, left)
        except asyncio.TimeoutError:
            raise WaitTimeout(f"pool {self.name}: not everything was done in time; stats() says what is left") from None

    async def _join(self, kinds: Collection[int]) -> None:
        rounds = JoinRounds()
        while True:
            await self.submitter.flush()
            self.check()
            wait = JOIN_WAIT_S if rounds.patient else 0.0
            asked = (self.call(index, "join", wait=wait, kinds=tuple(kinds)) for index in range(len(self.route)))
            states = await asyncio.gather(*asked)
            if rounds.done(states):
                break
        if Kind.CALL in kinds:
            await self.collector.wait_quiet()
        self.check()
        lost, self._items_lost = self._items_lost, 0
        for stream in self.streams:
            stream.items_accepted = 0
        if lost:
            raise QueueLost(
                f"pool {self.name}: a queue was lost with its host; up to {lost} items that this client had put since "
                "the last join were not done and cannot be put again"
            )

    async def stats(self) -> list[QueueStats]:
        """What each queue says of itself."""
        return list(await asyncio.gather(*(self.call(index, "stats") for index in range(len(self.route)))))

    def _remember(self, outcome: Outcome) -> None:
        now = time.monotonic_ns()
        number = self._kept.add(self.session.id, outcome, ())
        self._kept.collected([number], now)
        self._kept.expire(now)

    async def kept(self) -> list[tuple[int, Outcome]]:
        """`(client, outcome)` of every *keep* task that ended, from the queues and from what was collected here."""
        out: list[tuple[int, Outcome]] = []
        for index in range(len(self.route)):
            after = 0
            while after >= 0:
                after, some = await self.call(index, "read_kept", after=after)
                out += some
        self._kept.expire(time.monotonic_ns())
        _, ours = self._kept.read(0, 1 << 62)
        return out + ours
