"""Lease requests of a consumer pool on one worker: when to ask which queue, and what becomes of an answer.

While a slot is free, a request is open at each queue: parked there until something is ready, so nothing polls. Reports
that are due ride along. A request that is withdrawn may still be granted: the queue hears of it by the next heartbeat,
or the lease goes back.

Not here: what is done with a lease (`consumer_actor`). Event loop only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from distributed.core import Status

from daskqueue.wire.link import QueueReplaced, Route
from daskqueue.worker.reporter import AGAIN_S, GONE, Due, Reporter
from daskqueue.worker.slots import Slots
from daskqueue_core.balancer import ConsumerBalancer
from daskqueue_core.pacing import CAP
from daskqueue_core.protocols import Demand, Lease

if TYPE_CHECKING:
    from daskqueue.worker.plugin import DaskQueueWorker

__all__ = ["Actor", "Leasing"]

logger = logging.getLogger(__name__)

POLL_S: Final = 20.0
PAUSED_S: Final = 0.1


class Actor(Protocol):
    """Whom the work is for."""

    is_stopping: bool
    ttl: int
    """Nanoseconds of silence after which a queue takes back what it has leased."""

    def pump(self) -> None:
        """Something has changed: start, ask and report what there is."""

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine that the actor waits for when it ends."""

    def demand(self, uuid: str, free: int) -> Demand:
        """What so many free slots can use of that queue."""

    def accept(self, index: int, uuid: str, lease: Lease, free: int) -> None:
        """A queue has granted a lease to so many free slots."""


class _Ask:
    """A lease request that is parked or under way."""

    __slots__ = ("begun", "free", "index", "limit", "number", "reports", "task", "uuid", "wait", "while_paused")

    def __init__(self, index: int, uuid: str, number: int, free: int, wait: float) -> None:
        self.index = index
        self.uuid = uuid
        self.number = number
        self.free = free
        self.wait = wait
        self.limit = CAP * free
        self.reports: Due = []  # that ride along
        self.while_paused = False  # for the one message that a paused worker may take
        self.begun = False
        self.task: asyncio.Task[bool]


class Leasing:
    """The requests of one actor. `once`: what is leased is never delivered again."""

    def __init__(
        self, node: DaskQueueWorker, route: Route, actor: Actor, slots: Slots, reporter: Reporter, *, once: bool
    ) -> None:
        self._node = node
        self._route = route
        self._actor = actor
        self._slots = slots
        self._reporter = reporter
        self._once = once
        self._requests: dict[int, _Ask] = {}  # by queue index
        self._asking: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._balancer = ConsumerBalancer(len(route))

    def ask(self) -> None:
        """Ask for work if a slot is free, or soon will be."""
        if not self._slots.size:
            return
        free = self._slots.free
        if free <= 0:
            running = self._slots.running()
            if self._slots.is_waiting or not running or not all(chunk.is_ending for chunk in running):
                return
            free = self._slots.size  # short work: fetch the next while this runs
        starting = self._node.serves_from - asyncio.get_running_loop().time()
        if starting > 0:
            self._ask_later(starting)
            return
        if self._node.worker.status != Status.running:
            self._ask_later(PAUSED_S)
            if self._node.worker.status == Status.paused and free == self._slots.size:
                self._ask_while_paused()
            return
        if len(self._route) == 1:
            if 0 not in self._requests:
                self._open_request(0, free, POLL_S)
        elif self._asking is None:
            self._asking = self._actor.spawn(self._ask_in_turn(free))
            self._asking.add_done_callback(self._asked)  # it may be cancelled before its first step

    def _ask_while_paused(self) -> None:
        """Dask paused this worker for memory: take nothing, except one by one what nobody else would take.

        A queue that is hosted here holds memory here; if no other worker serves it, only running its messages helps.
        """
        for index, place in enumerate(self._route.places):
            actor = self._node.host.actors.get(place.uuid)
            if actor is not None and index not in self._requests and actor.is_left_alone(self._node.owner):
                self._open_request(index, 1, 0.0, while_paused=True)
                return

    def leave_to_others(self) -> None:
        """This worker does not run what comes, for a while: its parked requests would only be in the way."""
        if not any(ask.while_paused for ask in self._requests.values()):
            self.withdraw()

    def withdraw(self) -> None:
        """Wait for no lease any more; the queues hear of it at once."""
        if self._asking is not None:
            self._asking.cancel()
        for ask in list(self._requests.values()):
            ask.task.cancel()

    def _ask_later(self, seconds: float) -> None:
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(seconds, self._retry_now)

    def _retry_now(self) -> None:
        self._retry = None
        if not self._actor.is_stopping:
            self._actor.pump()

    async def _ask_in_turn(self, free: int) -> None:
        """Ask one queue after the other; when all are empty, park a request at each."""
        for index in self._balancer.order():
            if index not in self._requests and await self._open_request(index, free, 0.0):
                self._balancer.granted(index)
                return
        for index in self._balancer.order():
            if index not in self._requests:
                self._open_request(index, free, POLL_S)

    def _asked(self, asked: asyncio.Task[None]) -> None:
        self._asking = None
        if not asked.cancelled() and (error := asked.exception()) is not None:
            logger.error("consumers of pool %s failed to ask for work", self._route.pool, exc_info=error)
            self._ask_later(AGAIN_S)
        elif self._slots.free > 0 and not self._actor.is_stopping and len(self._requests) < len(self._route):
            self.ask()

    def _open_request(self, index: int, free: int, wait: float, *, while_paused: bool = False) -> asyncio.Task[bool]:
        """Ask queue `index` for work; the result says whether it gave some. Reports that are due ride along."""
        uuid = self._route.places[index].uuid
        ask = self._requests[index] = _Ask(index, uuid, self._node.book(uuid).request(), free, wait)
        if while_paused:
            ask.while_paused, ask.limit = True, 1
        ask.reports = self._reporter.take(index, uuid)
        ask.task = self._actor.spawn(self._request(ask))
        ask.task.add_done_callback(partial(self._request_ended, ask))
        return ask.task

    def _request_ended(self, ask: _Ask, task: asyncio.Task[bool]) -> None:
        if not task.cancelled():
            return
        if not ask.begun:  # cancelled before its first step: nobody has cleaned up
            self._forget(ask)
            self._give_up(ask)
        # That may have taken its time, if the host does not answer; who wanted to ask meanwhile found a request open.
        asyncio.get_running_loop().call_soon(self._actor.pump)

    def _forget(self, ask: _Ask) -> None:
        if self._requests.get(ask.index) is ask:
            del self._requests[ask.index]

    def _give_up(self, ask: _Ask) -> None:
        """Its answer, if one comes, is for nobody: the queue hears of it at once. Its reports go another way."""
        book = self._node.books.get(ask.uuid)
        if book is not None:
            book.give_up(ask.number)
            self._actor.spawn(self._node.heartbeat(self._route, ask.index))
        if ask.reports:
            self._reporter.put_back(ask.index, ask.uuid, ask.reports)
            ask.reports = []
            asyncio.get_running_loop().call_soon(self._actor.pump)

    async def _request(self, ask: _Ask) -> bool:
        ask.begun = True
        node, index, uuid = self._node, ask.index, ask.uuid
        book = node.book(uuid)
        lease: Lease | None = None
        again = ask.wait > 0
        try:
            lease = await node.link.call(
                self._route,
                index,
                "lease",
                uuid=uuid,
                limit=ask.limit,
                owner=node.owner,
                request=ask.number,
                ttl=self._actor.ttl,
                demand=self._actor.demand(uuid, ask.free),
                once=self._once,
                wait=ask.wait,
                reports=ask.reports,
            )
        except asyncio.CancelledError:  # withdrawn
            self._give_up(ask)
            raise
        except GONE as gone:
            node.queue_lost(uuid, self._route)
            again = isinstance(gone, QueueReplaced)
            if not again:
                self._actor.is_stopping = True
        except Exception as error:
            self._reporter.warn("lease", index, error)
            self._give_up(ask)
            await asyncio.sleep(AGAIN_S)
        finally:
            self._forget(ask)
        self._reporter.settled(uuid, ask.reports)
        if lease is None:
            book.withdraw(ask.number)
            if again:
                asyncio.get_running_loop().call_soon(self._actor.pump)
            return False
        if not book.granted(ask.number, lease.id, len(lease)) or not self._may_take(ask):
            self._actor.spawn(self._reporter.release(index, uuid, lease.id, lease.runs))
            asyncio.get_running_loop().call_soon(self._actor.pump)
            return False
        self._actor.accept(index, uuid, lease, ask.free)
        return True

    def _may_take(self, ask: _Ask) -> bool:
        """Whether what came of a request is still wanted: the worker may have been paused, or all this stopped."""
        if self._actor.is_stopping or not self._slots.size:
            return False
        return ask.while_paused or bool(self._node.worker.status == Status.running)
