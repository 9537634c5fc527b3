"""Hosts a queue: everything that waits.

A `QueueActor` is a plain class with asynchronous methods over a core queue. The worker plugin serves it to clients and
consumers; the same class runs as a native Dask actor (`client.submit(QueueActor, actor=True)`). It holds no rule about
messages: it makes callers wait (puts that overtook their predecessor, leases of an empty queue, polls without news,
joins) and wakes them, one consumer for each lease that can be granted.

Here the queue is in memory, and an operation on it is one step of the event loop. A queue whose operations take time is
served by a subclass (`durable_actor`): whatever is awaited here between an answer and the waiting for something better
is written so that nothing is missed meanwhile.

The queue's time is told by a timer of its own. If the event loop could not run for longer than two heartbeats, nobody
could be heard, so all deadlines move by that gap.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from math import inf
from typing import ClassVar, Final

from daskqueue.wire.clock import edge_clock
from daskqueue.wire.moving import APART_BYTES, MovingQueue
from daskqueue.worker.puts import Puts
from daskqueue.worker.queue_administration import QueueAdministration
from daskqueue.worker.waiting import Alive, LeaseRequest, Polls, resolve, wait_for
from daskqueue_core.batch import Batch, Buffer, Kind, Run
from daskqueue_core.joining import JoinState
from daskqueue_core.names import TaskName
from daskqueue_core.outcomes import Cursor, Outcomes, Report
from daskqueue_core.queue import DEFAULT_TTL, Accepted, Demand, Full, Lease, PutAnswer, TransientQueue

__all__ = ["HEARTBEAT_S", "Alive", "QueueActor"]

HEARTBEAT_S: Final = 1.0
RESUBMIT_GRACE_S: Final = 10.0
ABSENT_S: Final = 30.0  # who did not ask for so long serves this queue no more: a parked request is renewed after 20 s
RESTART_S: Final = 15.0  # a nanny may take to replace a lost worker
SOON_S: Final = 0.002  # that a put without neighbours waits for its outcomes
SOON_BYTES: Final = 65_536
REMIND_S: Final = 0.1


class QueueActor(QueueAdministration):
    """One queue and those who wait for it.

    `queue` defaults to a transient queue. `expected` are clients that may put again what an earlier life of the queue
    lost: it is not idle before they said that they are done, or `RESUBMIT_GRACE_S` are over. `before` is what its host
    knew before this one, which handed it over.
    """

    _answers_soon: ClassVar[bool] = True  # an operation is one step: an outcome can be had with the answer to its put

    def __init__(
        self,
        queue: TransientQueue | None = None,
        *,
        expected: Collection[str] = (),
        before: MovingQueue | None = None,
    ) -> None:
        self._clock = edge_clock()
        self.queue = queue if queue is not None else TransientQueue(clock=self._clock)
        self.queue.lapses_in_lease = False
        self._expected = set(expected)
        self._expected_until = self._clock() + int(RESUBMIT_GRACE_S * 1e9)
        self._puts = Puts(self._admit, self._room_again_s, () if before is None else before.refused)
        self._parked: deque[LeaseRequest] = deque()
        self._polls = Polls(self._has_news)
        self._reminder: asyncio.TimerHandle | None = None
        self._joins: dict[asyncio.Future[None], Collection[int]] = {}  # with the kinds they wait for
        self._asked_at: dict[str, float] = {}  # who asked for work last, and when
        self._is_again = bool(expected)  # its host before this one was lost
        self._alone_from = 0.0  # then, others may not have found the queue before this time
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0
        self._heard_at = 0.0
        self._closed = False
        if before is not None:
            now = asyncio.get_running_loop().time()
            self._expected.update(before.expected)
            self._asked_at.update(dict.fromkeys(before.served_by, now))
            self._arm()

    # -- producer

    async def put(self, body: bytes) -> int:
        """Add one message; returns its number."""
        return (await self.put_many([body]))[0]

    async def put_many(self, bodies: Sequence[bytes]) -> range:
        """Add messages; returns their numbers."""
        return await self._do(self.queue.put_many, bodies)

    async def put_block(self, block: Buffer, count: int) -> range:
        """Add `count` messages with one payload for all of them; returns their numbers."""
        return await self._do(self.queue.put_block, block, count)

    async def admit(
        self, batches: Sequence[Batch], *, producer: int | None = None, number: int = 0, wait: float = 0.0
    ) -> PutAnswer:
        """Admit a producer's put, in number order: one that overtook its predecessors waits for them.

        Waits up to `wait` seconds for room, behind those that wait already: a large put is not starved by small ones.
        """
        try:
            return await self._puts.admit(batches, producer, number, wait)
        finally:
            self._wake()

    async def admit_alone(
        self,
        batches: Sequence[Batch],
        *,
        client: int,
        cursor: Cursor | None,
        producer: int,
        number: int,
        wait: float = 0.0,
    ) -> tuple[PutAnswer, Outcomes | None]:
        """As `admit`, for a client that awaits nothing else: with the outcomes, if they take no longer than `SOON_S`.

        So a short task costs one message there and one back. They are acknowledged as those of a poll are.
        """
        if not self._answers_soon:
            return await self.admit(batches, producer=producer, number=number, wait=wait), None
        self.queue.poll(client, cursor, 0)  # first: nobody is to be woken for what it has read
        answer = await self.admit(batches, producer=producer, number=number, wait=wait)
        return answer, await self._soon(client, cursor) if isinstance(answer, Accepted) else None

    async def _soon(self, client: int, cursor: Cursor | None) -> Outcomes | None:
        """What `client` can read soon, if that is little. Its poll waits on, to remind it if no put follows."""
        try:
            await self._polls.wait_beside(client, SOON_S)
        finally:
            if self._reminder is None:
                self._reminder = asyncio.get_running_loop().call_later(REMIND_S, self._remind)
        outcomes = self.queue.poll(client, cursor, SOON_BYTES)
        if 0 < sum(outcome.nbytes for outcome in outcomes.outcomes) <= SOON_BYTES:
            return outcomes
        self._polls.wake()  # what is more comes by its poll, which waited beside this and has not heard of it
        return None

    def _remind(self) -> None:
        """Who has something to read, or read it with the answer to a put and was silent since, hears by its poll."""
        self._reminder = None
        self._wake()

    async def _admit(self, batches: Sequence[Batch], producer: int | None, number: int) -> PutAnswer:
        return self.queue.admit(batches, producer=producer, number=number)

    def _room_again_s(self, full: Full) -> float:
        """After how many seconds to ask again for room, though nothing happened: what is done here makes it."""
        return inf

    async def poll(
        self, client: int, cursor: Cursor | None = None, wait: float = 0.0, limit_bytes: int | None = None
    ) -> Outcomes:
        """The outcomes of `client` after `cursor`; waits up to `wait` seconds for the first."""
        limit = () if limit_bytes is None else (limit_bytes,)
        answer = self.queue.poll(client, cursor, *limit)
        self._wake()  # what was acknowledged made room
        if not answer.outcomes and wait > 0:
            await self._polls.wait(client, wait)
            answer = self.queue.poll(client, cursor, *limit)
        return answer

    # -- consumer

    async def lease(
        self,
        limit: int,
        *,
        owner: str = "local",
        request: int = 0,
        ttl: int = DEFAULT_TTL,
        demand: Demand | None = None,
        once: bool = False,
        suspects: bool = True,
        wait: float = 0.0,
        alive: Alive | None = None,
        near: bool = False,
    ) -> Lease | None:
        """Deliver at most `limit` messages; waits up to `wait` seconds for the first.

        `alive` says whether the caller can still be answered: nothing is granted to a corpse. `near` callers, of this
        very process, are served first: that saves two messages on the way of a task when the cluster is idle. But what
        may kill its worker goes to others, if there are any: here it would take the queue along, and the count.
        """
        self._heard_of(owner)
        if alive is not None and not alive():
            return None
        terms = {"owner": owner, "request": request, "ttl": ttl, "demand": demand, "once": once}
        return await self._lease(LeaseRequest(limit, suspects, near, alive, terms), wait)

    async def _lease(self, asked: LeaseRequest, wait: float) -> Lease | None:
        lease = self._grant(asked)
        if lease is not None or wait <= 0:
            return lease
        return await self._await_grant(self._park(asked), wait)

    def _heard_of(self, owner: str) -> None:
        if owner not in self._asked_at:
            self._drop_absent()
        self._asked_at[owner] = asyncio.get_running_loop().time()
        if self._is_again and not self._alone_from:
            self._alone_from = self._wake_after(RESTART_S)

    def _park(self, asked: LeaseRequest) -> LeaseRequest:
        asked.answer = asyncio.get_running_loop().create_future()
        (self._parked.appendleft if asked.near else self._parked.append)(asked)
        return asked

    async def _await_grant(self, asked: LeaseRequest, wait: float) -> Lease | None:
        """Wait up to `wait` seconds."""
        try:
            return await wait_for(asked.answer, wait)
        finally:
            if asked in self._parked:
                self._parked.remove(asked)

    def _takes_suspects(self, asked: LeaseRequest) -> bool:
        return asked.suspects and not (asked.near and self._others_serve(asked.terms["owner"]))

    def _grant(self, asked: LeaseRequest) -> Lease | None:
        lease = self.queue.lease(asked.limit, suspects=self._takes_suspects(asked), **asked.terms_now())
        if lease is not None:
            self._arm()
        return lease

    async def ack(self, lease: int | Lease, ids: Sequence[int] | None = None) -> int:
        """These messages (default: all of the lease) succeeded, without a value."""
        return await self._do(self.queue.ack, lease, ids)

    async def nack(
        self,
        lease: int | Lease,
        ids: Sequence[int] | None = None,
        *,
        error: bytes = b"",
        text: str = "",
        delay: float | None = None,
    ) -> int:
        """These messages (default: all of the lease) failed; with `delay`, in seconds, they are tried again."""
        return await self._do(self.queue.nack, lease, ids, error=error, text=text, delay=delay)

    async def subscribe(self, client: int, first: int, names: Sequence[TaskName]) -> list[int]:
        """Let `client` hear of the outcomes of these tasks, as its batch `first`; says what is known of each."""
        return await self._do(self.queue.subscribe, client, first, names)

    async def settle(self, lease: int, reports: Sequence[Report]) -> int:
        """Take the outcomes of messages that ran."""
        news = self.queue.settle(lease, reports)
        self._wake()
        return news

    async def release(self, lease: int | Lease, runs: Sequence[Run] | None = None) -> int:
        """The owner gives these back, not started (default: all it holds)."""
        return await self._do(self.queue.release, lease, runs)

    async def agree(self, lease: int | Lease, runs: Sequence[Run]) -> int:
        """The owner did not run these and gives up those that were cancelled."""
        return await self._do(self.queue.agree, lease, runs)

    async def heartbeat(
        self, owner: str, held: Mapping[int, tuple[int, int]], open: Collection[int], sent: int, ttl: int = DEFAULT_TTL
    ) -> dict[int, tuple[Run, ...]]:
        """Renew the owner's leases and release those it does not hold. Returns what to cancel."""
        return await self._do(self.queue.heartbeat, owner, held, open, sent, ttl)

    async def next_ready_at(self) -> int | None:
        """When time brings something next, in nanoseconds of the queue's clock."""
        return await self._call(self.queue.next_ready_at)

    async def tick(self) -> None:
        """Do what time brings."""
        await self._do(self.queue.tick)

    # -- the cluster

    async def owner_lost(self, owner: str) -> int:
        """The directory says the owner is gone: what it held goes back."""
        if owner in self._asked_at:
            self._asked_at[owner] = self._wake_after(RESTART_S) - ABSENT_S
        return await self._do(self.queue.owner_lost, owner)

    async def resubmitted(self, client: str) -> None:
        """`client` has put again what an earlier life of the queue lost."""
        self._expected.discard(client)
        self._wake()

    async def join(self, wait: float = 0.0, kinds: Collection[int] = tuple(Kind)) -> JoinState:
        """Waits up to `wait` seconds until nothing of these kinds is unfinished."""
        if not self._idle(kinds) and wait > 0:
            quiet = asyncio.get_running_loop().create_future()
            self._joins[quiet] = kinds
            self._arm()  # clients that never put again are noticed by time
            try:
                await wait_for(quiet, wait)
            finally:
                self._joins.pop(quiet, None)
        puts, unfinished = self._counts()
        return JoinState(self.queue.uuid, puts, puts - unfinished, self._idle(kinds))

    async def close(self) -> None:
        """Let everybody who waits go, and the queue too."""
        self._let_go()
        self.queue.close()

    def hand_over(self) -> MovingQueue:
        """The queue, for another host. Everybody who waits is let go: it is not here any more.

        If this raises, nothing has happened.
        """
        state = self.queue.hand_over(APART_BYTES)
        self._let_go()
        return MovingQueue(state, tuple(sorted(self._expected)), tuple(self._puts.refused), tuple(self._asked_at))

    def _let_go(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for parked in self._parked:
            resolve(parked.answer)
        self._puts.end_all()
        self._polls.end_all()
        for waiting in self._joins:
            resolve(waiting)

    def is_left_alone(self, owner: str) -> bool:
        """Whether something is ready that nobody but `owner` has asked for."""
        if not self._ready() or self._parked or set(self._owners()) - {owner}:
            return False
        recently = asyncio.get_running_loop().time() - HEARTBEAT_S  # somebody may be between two leases
        return not any(at > recently for other, at in self._asked_at.items() if other != owner)

    # -- inside

    def _wake_after(self, seconds: float) -> float:
        """Look at who waits again then; says when that is."""
        loop = asyncio.get_running_loop()
        at = loop.time() + seconds
        loop.call_at(at + 0.01, self._wake_all)
        return at

    def _others_serve(self, owner: str) -> bool:
        """Whether somebody else takes messages of this queue. A worker that was lost may come back in a moment."""
        if asyncio.get_running_loop().time() < self._alone_from:
            return True
        self._drop_absent()
        return any(other != owner for other in self._asked_at)

    def _drop_absent(self) -> None:
        before = asyncio.get_running_loop().time() - ABSENT_S
        for owner, at in list(self._asked_at.items()):
            if at < before:
                del self._asked_at[owner]

    def _wake_all(self) -> None:
        """Time has passed, by which somebody may be served who was not."""
        self._wake()

    def _wake(self, room: bool = True) -> None:
        if self._closed:
            return
        if self._parked and self._ready():
            self._grant_parked()
        self._polls.wake()
        if room:
            self._puts.wake()
        for quiet, kinds in self._joins.items():
            if self._idle(kinds):
                resolve(quiet)
        self._arm()

    def _grant_parked(self) -> None:
        refused: list[LeaseRequest] = []
        while self._parked and self.queue.ready:
            parked = self._parked.popleft()
            if parked.is_over:
                resolve(parked.answer)
                continue
            try:
                lease = self._grant(parked)
            except Exception as error:  # its caller's, not of whoever woke it
                parked.answer.set_exception(error)
                continue
            if lease is None:
                refused.append(parked)
            else:
                parked.answer.set_result(lease)
        self._parked.extendleft(reversed(refused))

    def _idle(self, kinds: Collection[int]) -> bool:
        if self._unfinished_of(kinds) or self._puts.are_early:
            return False
        if self._expected and self._clock() >= self._expected_until:
            self._expected.clear()
        return not self._expected

    def _arm(self) -> None:
        """Keep a timer while there is something that time can bring, set to the first of it."""
        if self._closed:
            return
        if self._timer is not None and self.queue.next_scheduled_at() >= self._timer_at:
            return  # nothing else comes sooner by a change of the queue
        at = self.queue.next_ready_at()
        if at is None and not (self._joins and self._expected):
            return
        loop = asyncio.get_running_loop()
        delay = HEARTBEAT_S if at is None else min(max((at - self._clock()) / 1e9, 0.001), HEARTBEAT_S)
        if self._timer is not None:
            self._timer.cancel()
        self._heard_at = loop.time() + delay
        self._timer_at = self._clock() + int(delay * 1e9)
        self._timer = loop.call_later(delay, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        deaf = asyncio.get_running_loop().time() - self._heard_at
        if deaf > 2 * HEARTBEAT_S:
            self.queue.shift_deadlines(int(deaf * 1e9))
        self.queue.tick()
        self._wake()
