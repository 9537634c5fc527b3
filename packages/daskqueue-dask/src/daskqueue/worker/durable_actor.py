"""Hosts a durable queue: the queue actor, with every operation in threads, since it waits for the disk.

No disk work is done on the worker's event loop, and callers that wait for the disk together share one sync. What the
queue actor decides on the event loop it decides by what was seen of the queue last: each operation is followed by a
glance at the queue, in the same thread. A glance has a number, and the newest counts, whichever is heard first.

Invariants:
- Nothing is missed. Who waits registers, and then goes by a glance that is at least as new as the answer it was given;
  every operation's glance is taken after it and heard after that, so a change is in the one or wakes by the other.
- An operation that was begun is ended. A lease whose caller is gone by then goes back, unless its request came again:
  then the grant is the later caller's.
- Puts are recorded in the order they came, and wait for the disk together. Leases that wait are granted one at a time,
  in order. Time passes in one thread at a time.
- A queue that somebody else has taken over, or whose disk failed, is over: everybody hears `QueueOver`, the host too.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from math import inf
from typing import Any, Final, ParamSpec, TypeVar

from daskqueue.worker.hosted_queue import Glance, HostedQueue
from daskqueue.worker.queue_actor import HEARTBEAT_S, QueueActor
from daskqueue.worker.queue_threads import Job, Lane, QueueThreads
from daskqueue.worker.waiting import LeaseRequest, resolve
from daskqueue_core.batch import Batch, Kind
from daskqueue_core.errors import DaskQueueError
from daskqueue_core.joining import JoinState
from daskqueue_core.outcomes import Cursor, Outcomes, Report
from daskqueue_core.queue import Accepted, Full, Lease, PutAnswer
from daskqueue_storage.errors import ClosedError, DiskFullError, FencedError, WriterFailedError

__all__ = ["DurableActor", "QueueOver"]

logger = logging.getLogger(__name__)

THREADS: Final = 8
DISK_AGAIN_S: Final = 1.0  # a disk that was full may have room: nothing here says so
REMEMBERED: Final = 1000
OVER: Final = (FencedError, WriterFailedError, ClosedError)

P = ParamSpec("P")
T = TypeVar("T")
Try = Callable[[], "Lease | None"]


class QueueOver(DaskQueueError):
    """A durable queue is not served here any more: ask the directory where it is."""


class _NoSpace(Full):
    """The disk is full: the put may be repeated, as if the queue was."""

    error: DiskFullError


class _Operation(Job[T]):
    """An operation of the queue, and the glance after it."""

    __slots__ = ("_actor", "after", "is_grant", "room", "seen")

    def __init__(
        self, actor: DurableActor, do: Callable[[], T], room: bool, is_grant: bool, after: Callable[[], None] | None
    ) -> None:
        super().__init__(do)
        self._actor = actor
        self.room = room
        self.is_grant = is_grant
        self.after = after
        self.seen: tuple[int, Glance] | None = None

    def run(self) -> None:
        super().run()
        try:
            self.seen = self._actor._look()
        except BaseException as error:  # also of what is done: it may be told only by who still has the queue
            if self.error is None or isinstance(error, OVER):
                self.error = error

    def end(self) -> None:
        try:
            self._actor._hear(self)
        finally:  # whatever that brings: its caller waits
            super().end()


class DurableActor(QueueActor):
    """One durable queue and those who wait for it.

    `threads` is how many operations at a time may wait for the disk. `on_over` is called once, on the event loop, when
    the queue cannot be served here any more, and says why; then `close` it.
    """

    queue: HostedQueue
    _answers_soon = False  # the disk takes longer

    def __init__(
        self,
        queue: HostedQueue,
        *,
        expected: Collection[str] = (),
        threads: int = THREADS,
        on_over: Callable[[Exception], None] | None = None,
    ) -> None:
        super().__init__(queue, expected=expected)
        self.over: Exception | None = None
        self._on_over = on_over
        self._threads = QueueThreads(f"daskqueue-{queue.uuid[:8]}", threads)
        self._closing: asyncio.Task[None] | None = None
        self._looking = threading.Lock()
        self._looks = 0  # ever
        self._watched: tuple[int, ...] = ()  # clients that poll, for the threads: replaced, never changed
        self._watching: Counter[int] = Counter()
        self._seen = queue.glance(())  # nobody else can have it yet: this does not wait
        self._seen_number = 0
        self._due = self._due_by(self._seen)
        self._timer_due = inf
        self._ticking = False
        self._again = False  # since the parked requests were tried last, something happened
        self._granting: asyncio.Task[None] | None = None
        self._put_lane = Lane()  # in the order they came: else most would be early, and share no sync
        queue.on_put_recorded = self._put_lane.leave
        self._asked: dict[tuple[str, int], LeaseRequest] = {}  # the last caller of each request, in order
        self._arm()

    # -- operations

    def _start(
        self,
        do: Callable[[], T],
        *,
        room: bool = True,
        is_grant: bool = False,
        after: Callable[[], None] | None = None,
        lane: Lane | None = None,
        closing: bool = False,
    ) -> _Operation[T]:
        if self._closed and not closing:
            raise self._gone()
        operation = _Operation(self, do, room, is_grant, after)
        self._threads.start(operation, lane)
        return operation

    async def _call(self, operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        job = self._start(partial(operation, *args, **kwargs), room=False)
        await job.waiter
        return job.result()

    async def _do(self, operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        job = self._start(partial(operation, *args, **kwargs))
        await job.waiter
        return job.result()

    def _look(self) -> tuple[int, Glance]:
        """In a thread. One at a time, so that a higher number saw what a lower one saw, or later."""
        with self._looking:
            self._looks += 1
            return self._looks, self.queue.glance(self._watched)

    def _hear(self, operation: _Operation[Any]) -> None:
        """An operation has ended."""
        if operation.seen is not None and operation.seen[0] > self._seen_number:
            self._seen_number, self._seen = operation.seen
            self._due = self._due_by(self._seen)
        if operation.after is not None:
            operation.after()
        if isinstance(operation.error, OVER):
            self._is_over(operation.error)
            operation.error = self._gone()
        self._again |= not operation.is_grant
        self._wake(operation.room)

    # -- what was seen last

    def _ready(self) -> int:
        return self._seen.ready

    def _has_news(self, client: int) -> bool:
        return client in self._seen.news

    def _unfinished_of(self, kinds: Collection[int]) -> int:
        return sum([self._seen.of_kind[kind] for kind in Kind if kind in kinds])

    def _counts(self) -> tuple[int, int]:
        return self._seen.puts, self._seen.unfinished

    def _owners(self) -> Collection[str]:
        return self._seen.owners

    # -- producer

    async def admit(
        self, batches: Sequence[Batch], *, producer: int | None = None, number: int = 0, wait: float = 0.0
    ) -> PutAnswer:
        """As `QueueActor.admit`. A full disk is as a full queue, but that it raises `DiskFullError` in the end."""
        answer = await super().admit(batches, producer=producer, number=number, wait=wait)
        if isinstance(answer, _NoSpace):
            raise answer.error
        if not isinstance(answer, Accepted):
            self._check()
        return answer

    async def _admit(self, batches: Sequence[Batch], producer: int | None, number: int) -> PutAnswer:
        ask = partial(self.queue.admit, batches, producer=producer, number=number)
        put = self._start(partial(self._put_lane.through, ask), room=False, lane=self._put_lane)
        await put.waiter
        try:
            return put.result()
        except DiskFullError as error:
            answer = _NoSpace(-1)
            answer.error = error
            return answer

    def _room_again_s(self, full: Full) -> float:
        return DISK_AGAIN_S if isinstance(full, _NoSpace) else inf

    async def poll(
        self, client: int, cursor: Cursor | None = None, wait: float = 0.0, limit_bytes: int | None = None
    ) -> Outcomes:
        """As `QueueActor.poll`."""
        limit = () if limit_bytes is None else (limit_bytes,)
        self._watch(client, 1)  # first: news may come while we ask
        try:
            answer = await self._do(self.queue.poll, client, cursor, *limit)
            if not answer.outcomes and wait > 0:
                await self._polls.wait(client, wait)
                if not self._closed:
                    answer = await self._call(self.queue.poll, client, cursor, *limit)
        finally:
            self._watch(client, -1)
        if not answer.outcomes:
            self._check()
        return answer

    def _watch(self, client: int, by: int) -> None:
        self._watching[client] += by
        if not self._watching[client]:
            del self._watching[client]
        self._watched = tuple(self._watching)

    # -- consumer

    async def _lease(self, asked: LeaseRequest, wait: float) -> Lease | None:
        self._remember(asked)
        grant = self._start(self._try(asked), room=False)
        try:
            await grant.waiter
        except asyncio.CancelledError:
            grant.leave_to(partial(self._give_back, asked))
            raise
        lease = grant.result()
        if lease is not None and asked.alive is not None and not asked.alive():
            self._give_back(asked, lease)
            return None
        if lease is not None or wait <= 0 or self._closed:
            return lease
        self._park(asked)
        self._wake_all()  # something may have become ready while we were answered
        try:
            return await self._await_grant(asked, wait)
        except asyncio.CancelledError:
            self._unheard(asked)
            raise

    def _try(self, asked: LeaseRequest) -> Try:
        return partial(self.queue.lease, asked.limit, suspects=self._takes_suspects(asked), **asked.terms_now())

    def _wake_all(self) -> None:
        self._again = True
        self._wake()

    def _grant_parked(self) -> None:
        if self._again and self._granting is None:
            self._granting = asyncio.ensure_future(self._grant_in_order())

    async def _grant_in_order(self) -> None:
        try:
            while self._again and self._seen.ready and not self._closed:
                self._again = False
                await self._grant_once()
        finally:
            self._granting = None

    async def _grant_once(self) -> None:
        """Try everybody who waits, in one thread until somebody gets something, then those behind."""
        waiting = list(self._parked)
        while waiting and not self._closed:
            for asked in [asked for asked in waiting if asked.is_over]:
                resolve(asked.answer)
                self._unpark(asked)
            waiting = [asked for asked in waiting if not asked.answer.done()]
            grant = self._start(partial(_first, [self._try(asked) for asked in waiting]), room=False, is_grant=True)
            await grant.waiter
            if grant.error is not None:
                return  # it is over, and so is everybody's waiting
            at, lease, error = grant.result()
            if at == len(waiting):
                return
            asked, waiting = waiting[at], waiting[at + 1 :]
            self._unpark(asked)
            if error is not None and not asked.is_over:
                asked.answer.set_exception(error)  # its caller's only
            elif lease is not None and not asked.is_over:
                asked.answer.set_result(lease)
            else:
                resolve(asked.answer)
                if lease is not None:
                    self._give_back(asked, lease)

    def _unpark(self, asked: LeaseRequest) -> None:
        if asked in self._parked:
            self._parked.remove(asked)

    def _unheard(self, asked: LeaseRequest) -> None:
        """A caller went; perhaps it had just been granted something."""
        answer = asked.answer
        if answer.cancelled() or not answer.done() or answer.exception() is not None:
            return
        lease = answer.result()
        if lease is not None:
            self._give_back(asked, lease)

    def _remember(self, asked: LeaseRequest) -> None:
        key = asked.terms["owner"], asked.terms["request"]
        if key[1]:
            self._asked.pop(key, None)
            self._asked[key] = asked
            if len(self._asked) > REMEMBERED:
                del self._asked[next(iter(self._asked))]

    def _give_back(self, asked: LeaseRequest, lease: Lease | None) -> None:
        """Nobody took this grant. Not if its request came again: it has the same grant."""
        key = asked.terms["owner"], asked.terms["request"]
        if lease is not None and (not key[1] or self._asked.get(key) is asked):
            self._start(partial(self.queue.release, lease), closing=True)

    async def settle(self, lease: int, reports: Sequence[Report]) -> int:
        """As `QueueActor.settle`."""
        return await self._do(self.queue.settle, lease, reports)

    # -- the cluster

    async def join(self, wait: float = 0.0, kinds: Collection[int] = tuple(Kind)) -> JoinState:
        """As `QueueActor.join`."""
        state = await super().join(wait, kinds)
        self._check()
        return state

    # -- time

    def _due_by(self, seen: Glance) -> float:
        """When time brings something, on the event loop's clock."""
        return inf if seen.next_in is None else asyncio.get_running_loop().time() + seen.next_in

    def _arm(self) -> None:
        if self._closed or self._ticking or (self._due == inf and not (self._joins and self._expected)):
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        due = min(max(self._due, now + 0.001), now + HEARTBEAT_S)
        if self._timer is not None:
            if due >= self._timer_due:
                return
            self._timer.cancel()
        self._timer_due = due
        self._timer = loop.call_at(due, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._ticking = True
        self._start(partial(self._tick, self._timer_due), after=self._ticked)

    def _tick(self, due: float) -> None:
        """In a thread. Nobody was heard while the event loop was busy, or the disk, for which our turn waits."""
        self.queue.owners()
        deaf = time.monotonic() - due
        if deaf > 2 * HEARTBEAT_S:
            self.queue.shift_deadlines(int(deaf * 1e9))
        self.queue.tick()

    def _ticked(self) -> None:
        self._ticking = False

    # -- the end

    def _gone(self) -> QueueOver:
        why = "it is closed" if self.over is None else str(self.over)
        gone = QueueOver(f"queue {self.queue.uuid} is not served here any more: {why}")
        gone.__cause__ = self.over
        return gone

    def _check(self) -> None:
        if self.over is not None:
            raise self._gone()

    def _is_over(self, error: Exception) -> None:
        if self._closed:
            return
        self.over = error
        for parked in self._parked:
            if not parked.answer.done():
                parked.answer.set_exception(self._gone())
                parked.answer.exception()  # heard, also if its caller goes now
        self._let_go()
        if self._on_over is not None:
            self._on_over(error)

    async def close(self) -> None:
        """Let everybody who waits go; when what runs has ended, close the queue, in a thread. May be called twice."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._let_go()
        await self._threads.wait_idle()
        closing = Job(self.queue.close)
        self._threads.start(closing)
        self._threads.close()
        await closing.waiter
        closing.result()


def _first(tries: Sequence[Try]) -> tuple[int, Lease | None, Exception | None]:
    """In a thread: the first that gets something, and what; their number if none does."""
    for at, grant in enumerate(tries):
        try:
            lease = grant()
        except OVER:
            raise
        except Exception as error:
            return at, None, error
        if lease is not None:
            return at, lease, None
    return len(tries), None, None
