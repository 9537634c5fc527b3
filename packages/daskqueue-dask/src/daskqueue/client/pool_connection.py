"""One pool, seen from one client: its streams out and in, and what happens when a queue is lost or the pool ends."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Collection, Sequence
from concurrent.futures import CancelledError
from math import inf
from typing import Any, Final

from daskqueue.client.administration import Administration
from daskqueue.client.cancelling import Canceller
from daskqueue.client.checkup import Checkup
from daskqueue.client.collector import Collector
from daskqueue.client.finding import Finder
from daskqueue.client.futures import Sink, TaskFuture
from daskqueue.client.health import Served
from daskqueue.client.item_door import put_now
from daskqueue.client.memory import Memory
from daskqueue.client.naming import Named, parse_key, queue_of
from daskqueue.client.options import Durability, pool_control, pool_retry
from daskqueue.client.reading import Kept
from daskqueue.client.session import Session
from daskqueue.client.submitter import Submitter, most_in_a_put
from daskqueue.client.task_options import Terms
from daskqueue.client.timeouts import WaitTimeout, whereabouts
from daskqueue.utils import logger
from daskqueue.wire import nested
from daskqueue.wire.link import PoolGone, QueueReplaced, Route, SchedulerGone
from daskqueue.wire.operations import OK
from daskqueue_core.balancer import RoundRobin
from daskqueue_core.batch import Batch, Keep, Kind, OnDuplicate
from daskqueue_core.errors import DaskQueueError, DuplicateKey, PoolClosed, QueueLost
from daskqueue_core.joining import JoinRounds
from daskqueue_core.outcomes import Outcome, Outcomes
from daskqueue_core.producer import LostBatch, ProducerStream
from daskqueue_core.protocols import Accepted
from daskqueue_core.retry import RetryPolicy
from daskqueue_core.stats import QueueStats

__all__ = ["PoolConnection"]

JOIN_WAIT_S: Final = 20.0
ANSWER_S: Final = 5.0  # what a host may take to answer a put that does not wait for room
GRACE_S: Final = 0.25  # beyond a caller's timeout, for the answer that there was no room
ASK_AGAIN_S: Final = 0.25
ASKED_ONCE_S: Final = 1.0  # what all queues may take to answer a join that waits for nothing


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
        self.left_open = False
        """It is over here, and the directory has not heard that it is to end."""
        control, max_crashes = pool_control(options)
        self.plain = [Terms(keep, control, max_crashes=max_crashes) for keep in Keep]
        """The terms of tasks without options, by `Keep`."""
        self._items_lost = 0
        ttl = options["result_ttl"]
        self.memory = Memory(
            ttl=None if ttl is None else int(ttl * 1e9),
            max_bytes=options["result_max_bytes"],
            keeps=options["durability"] != Durability.DURABLE,
        )
        maxsize = options["maxsize"]
        most = most_in_a_put(maxsize, options["on_full"])
        self.streams = [
            ProducerStream(place.uuid, lambda: secrets.randbits(64), maxsize=most) for place in route.places
        ]
        self.submitter = Submitter(session, route, self.streams, self, maxsize=maxsize, on_full=options["on_full"])
        self._door_balancer = RoundRobin(len(route), start=session.id)
        self.finder = Finder(self)
        self.administration = Administration(self)
        self.canceller = Canceller(self)
        self.checkup = Checkup(self)
        self.collector = Collector(session, route, self.streams, self)

    def start(self) -> None:
        """Begin to listen."""
        self.collector.start()
        self.session.watch(self.over)

    def retry(self) -> RetryPolicy | None:
        """The pool's policy; raises if an exception class that it names is missing here."""
        return pool_retry(self.options)

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

    def begin_end(self) -> bool:
        """As `refuse`, before the directory is told. False: it knows."""
        if self.error is None:
            self.refuse()
        return self.error is None or self.left_open

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
            left = max(0.0, until - asyncio.get_running_loop().time())
            await self._put_now(self._door_balancer.pick(), batch, left, left + GRACE_S if wait else ANSWER_S)

    async def put_keyed(self, batch: Batch, wait: float | None) -> None:
        """Put one item that has a key; `wait` as for `put`."""
        self.check()
        index = queue_of(batch.keys[0], len(self.route))
        if wait is None and self.options["on_full"] == "wait":
            answer = await self._put_now(index, batch, inf, None)
        else:
            answer = await self._put_now(index, batch, wait or 0.0, wait + GRACE_S if wait else ANSWER_S)
        if not answer.count and batch.on_duplicate == OnDuplicate.RAISE:
            raise DuplicateKey(f"pool {self.name}: an item with the key {batch.keys[0]!r} is there and not done")

    async def _put_now(self, index: int, batch: Batch, wait: float, patience: float | None) -> Accepted:
        """Put a batch at once, or wait so many seconds for room; `patience`: for the queue's host."""
        work = put_now(self.session.link, self.route, index, batch, wait=wait, patience=patience)
        try:
            answer = await asyncio.wait_for(work, patience)
        except asyncio.TimeoutError:
            raise WaitTimeout(
                f"queue {index} of pool {self.name} did not accept the items in time; {self.whereabouts()}"
            ) from None
        except (PoolGone, SchedulerGone) as error:
            self.over(error)
            self.check()
            raise
        self.streams[index].items_accepted += answer.count
        return answer

    def deliver(self, index: int, outcomes: Outcomes) -> None:
        """Queue `index` has answered a put with its outcomes."""
        self.collector.deliver(self.streams[index], outcomes)

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
        self.session.spawn(self.finder.replaced(index))

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
                return (await self.served()).early_ack
            except OSError:  # only the directory's word makes a loss
                await asyncio.sleep(ASK_AGAIN_S)
            except DaskQueueError:
                break
        return True

    def _lose(self, batch: LostBatch, resubmit: bool) -> None:
        if resubmit:
            why = f"it was put again {batch.resent} times and its queue was lost each time"
        else:
            why = "the queue was lost with its host, and it must not be put again"
        error = CancelledError() if batch.cancelled else QueueLost(f"pool {self.name}: {why}")
        for lo, hi in batch.runs:
            batch.sink.lose(batch.shift + lo, batch.shift + hi, error)

    def over(self, error: BaseException) -> None:
        """Nothing more will come: every future ends. What is neither the directory's word nor Dask's is no loss."""
        if self.error is not None:
            return
        ended: type[DaskQueueError] = QueueLost
        if isinstance(error, PoolClosed):
            why = str(error)
        elif isinstance(error, PoolGone):
            why = "it was shut down"
        elif isinstance(error, SchedulerGone):
            why = "the Dask scheduler is gone, or the client was closed"
        else:
            why = str(error) if isinstance(error, DaskQueueError) else repr(error)
            ended, self.left_open = DaskQueueError, True
        self._end(PoolClosed(f"pool {self.name} is over: {why}"), ended(f"pool {self.name} is over: {why}"))

    def close(self, outcome: BaseException) -> None:
        """The pool was shut down here; what is unfinished ends with `outcome`."""
        if self.error is None:
            self.left_open = True
            self._end(PoolClosed(f"pool {self.name} was shut down: make a new one"), outcome)

    def _end(self, error: BaseException, outcome: BaseException) -> None:
        self.error = error
        if self.session.pools.get(self.name) is self:
            del self.session.pools[self.name]
        self.session.unwatch(self.over)
        self.collector.close()
        self.finder.over(outcome)
        self.submitter.close(error, outcome)
        for stream in self.streams:
            for batch in stream.abandon():
                for lo, hi in batch.runs:
                    batch.sink.lose(batch.shift + lo, batch.shift + hi, outcome)

    # -- cancelling, for futures and batches

    def cancel_future(self, future: TaskFuture) -> bool:
        """Cancel one task; see `TaskFuture.cancel`."""
        return self.canceller.cancel_future(future)

    async def cancel_future_async(self, future: TaskFuture) -> bool:
        """As `cancel_future`, on the event loop."""
        return await self.canceller.cancel_future_async(future)

    def cancel_batch(self, batch: Sink) -> int:
        """Cancel what is left of a batch; returns how many tasks ended by it at once."""
        return self.canceller.cancel_batch(batch)

    def abandon(self, sink: Sink) -> None:
        """Nobody reads this any more: cancel what is left of it, without waiting."""
        self.canceller.abandon(sink)

    # -- waiting and reading

    def check_may_wait(self) -> None:
        """See `Session.check_may_wait`."""
        self.session.check_may_wait()

    def whereabouts(self) -> str:
        """Who hosts the queues, and when they were last heard of: for errors of those who waited in vain."""
        return whereabouts(self.route, self.session.link.silent_for)

    async def join(self, deadline: float | None, kinds: Collection[int] = tuple(Kind)) -> None:
        """Wait until every queue of the pool is done, in two rounds that agree, and this client has every outcome.

        With fewer `kinds` only for those: what no consumer serves would never be done.
        """
        if deadline is None:
            await self._join(kinds)
            return
        clock = asyncio.get_running_loop().time
        try:
            done = await asyncio.wait_for(self._join(kinds, deadline), max(deadline - clock(), ASKED_ONCE_S))
        except asyncio.TimeoutError:
            done = False
        if not done:
            left_over = f"pool {self.name}: not everything was done in time; stats() says what is left"
            raise WaitTimeout(f"{left_over}; {self.whereabouts()}")

    async def _join(self, kinds: Collection[int], deadline: float = inf) -> bool:
        """False: it was not done by then. Every queue is asked at least once, however soon that is."""
        clock = asyncio.get_running_loop().time
        rounds = JoinRounds()
        while True:
            await self.submitter.flush()
            self.check()
            wait = min(JOIN_WAIT_S, max(0.0, deadline - clock())) if rounds.patient else 0.0
            asked = (self.call(index, "join", wait=wait, kinds=tuple(kinds)) for index in range(len(self.route)))
            states = await asyncio.gather(*asked)
            if rounds.done(states):
                break
            if rounds.patient and clock() >= deadline:
                return False
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
        return True

    async def stats(self) -> list[QueueStats]:
        """What each queue says of itself."""
        return list(await asyncio.gather(*(self.call(index, "stats") for index in range(len(self.route)))))

    async def read_kept(self, keys: Sequence[str] | None) -> Kept:
        """Every *keep* task that ended (or those of `keys`): from the queues, and from here what those have lost.

        What another client has submitted under a key of its own is asked for by that.
        """
        out: list[tuple[int, Outcome]] = []
        foreign = [key for key in keys or () if not parse_key(key).everywhere and self.own_number(key) is None]
        for index in range(len(self.route)) if keys is None or len(foreign) < len(keys) else ():
            after = 0
            while after >= 0:
                after, some = await self.call(index, "read_kept", after=after)
                out += some
        out += [(self.client_id, outcome) for outcome in self.memory.lost(self._lives)]
        foreign += self._not_among(out, keys or ())
        return Kept(out, self.key_of, keys if keys is None else set(keys), await self.finder.ended(foreign))

    def _not_among(self, kept: Sequence[tuple[int, Outcome]], keys: Sequence[str]) -> list[str]:
        """Keys that this client gave, but not to the task that has them: that one was another client's."""
        numbered = ((self.own_number(key), key) for key in keys if not parse_key(key).everywhere)
        left = {number: key for number, key in numbered if number is not None}
        for client, outcome in kept if left else ():
            if client == self.client_id:
                base = outcome.first + outcome.index
                for lo, hi in outcome.runs:
                    span = range(base + lo, base + hi)
                    for number in span if len(span) < len(left) else [number for number in left if number in span]:
                        left.pop(number, None)
        return list(left.values())

    # -- keys

    @property
    def _lives(self) -> set[str]:
        """The lives that the pool's queues have now."""
        return {place.uuid for place in self.route.places}

    def name_task(self, number: int, key: str) -> None:
        """The client's task `number` has this explicit key. Called by any thread."""
        self.memory.name(number, key)

    def unname_task(self, number: int) -> None:
        """The task ended before its queue had it, or with its queue. Called by any thread."""
        self.memory.unname(number)

    def key_of(self, client: int, number: int) -> str | None:
        """The explicit key of a task, as far as this client knows."""
        return self.memory.key_of(number) if client == self.client_id else None

    def own_number(self, key: str) -> int | None:
        """This client's number of the task `key`; None if it is not its own, as far as it knows."""
        name = parse_key(key).name
        if isinstance(name, str):
            return self.memory.number_of(name)
        return name[1] if name[0] == self.client_id else None

    def has_buffered(self, key: str) -> bool:
        """Whether a task may not have reached its queue yet."""
        return self.submitter.buffered and self.own_number(key) is not None

    def queue_of(self, key: str, named: Named) -> int | None:
        """The queue that knows a task which cannot be anywhere; None if that life of it is over."""
        if not named.uuid:
            return queue_of(key, len(self.route))
        return next((index for index, place in enumerate(self.route.places) if place.uuid == named.uuid), None)

    def remembered(self, key: str) -> tuple[Outcome, int] | None:
        """The outcome of an own task that its queue has lost, and its position in that."""
        number = self.own_number(key)
        return None if number is None else self.memory.find_lost(number, self._lives)

    # -- who serves it

    async def served(self) -> Served:
        """Who serves the pool, says the directory. Raises OSError."""
        answer = await self.session.ask("served", pool=self.name)
        if answer[0] != OK:
            raise DaskQueueError(f"the scheduler failed to say who serves pool {self.name}: {answer}")
        return Served.of(answer[1])
