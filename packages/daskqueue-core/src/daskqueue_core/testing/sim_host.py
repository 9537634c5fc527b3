"""The hosts of a simulated cluster: core queues, and those who wait for them.

`SimQueue` is to the simulation what the adapter's queue actor is to an event loop, rule for rule: puts that overtook
their predecessors, parked leases and polls, joins, the timer, deadlines that move when the host was deaf. It holds no
rule about messages. `SimHost` opens queues, hands them over and takes them over. Callers name the epoch under which
the directory told them the queue is here, so none is served before its place is switched, nor after.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

from daskqueue_core.batch import Batch, Run
from daskqueue_core.handover import Epochs, HandOver, QueueMoved
from daskqueue_core.joining import JoinState
from daskqueue_core.ledger import Early
from daskqueue_core.names import TaskName
from daskqueue_core.outcomes import Cursor, Outcomes, Report
from daskqueue_core.queue import Demand, Lease, PutAnswer, TransientQueue
from daskqueue_core.testing.network import SimNetwork
from daskqueue_core.testing.simulation import Alive, Promise, SimNode, Timer

__all__ = ["HEARTBEAT_S", "LOST", "OK", "SimHost", "SimQueue"]

HEARTBEAT_S: Final = 1.0
EARLY_WAIT_S: Final = 30.0
RESUBMIT_GRACE_S: Final = 10.0
FETCH_S: Final = 10.0

OK: Final = "ok"
LOST: Final = "lost"


class _Parked:
    def __init__(self, grant: Callable[[], Lease | None], alive: Alive | None) -> None:
        self.grant = grant
        self.alive = alive
        self.answer: Promise[Lease | None] = Promise()


class SimQueue:
    """One queue and those who wait for it."""

    def __init__(self, node: SimNode, queue: TransientQueue, expected: Collection[str] = ()) -> None:
        self.queue = queue
        self._node = node
        self._clock = node.simulation.clock
        self._expected = set(expected)
        self._expected_until = self._clock.seconds + RESUBMIT_GRACE_S
        self._early: dict[tuple[int, int], Promise[None]] = {}
        self._parked: deque[_Parked] = deque()
        self._polls: dict[int, Promise[None]] = {}
        self._joins: list[Promise[None]] = []
        self._timer: Timer | None = None
        self._heard_at = 0.0
        self._arm()

    # -- producer

    async def admit(self, batches: Sequence[Batch], *, producer: int, number: int) -> PutAnswer:
        """A put that overtook its predecessors waits for them."""
        answer = self.queue.admit(batches, producer=producer, number=number)
        if isinstance(answer, Early):
            turn = self._early.setdefault((producer, number), Promise())
            await self._node.wait(turn, EARLY_WAIT_S)
            self._early.pop((producer, number), None)
            answer = self.queue.admit(batches, producer=producer, number=number)
        successor = self._early.pop((producer, number + 1), None)
        if successor is not None:
            successor.resolve(None)
        self._wake()
        return answer

    async def poll(self, client: int, cursor: Cursor | None, wait: float) -> Outcomes:
        """Waits for the first outcome."""
        answer = self.queue.poll(client, cursor)
        self._arm()
        if answer.outcomes or wait <= 0:
            return answer
        older = self._polls.pop(client, None)
        if older is not None:
            older.resolve(None)
        news: Promise[None] = Promise()
        self._polls[client] = news
        await self._node.wait(news, wait)
        if self._polls.get(client) is news:
            del self._polls[client]
        return self.queue.poll(client, cursor)

    # -- consumer

    async def lease(
        self,
        limit: int,
        *,
        owner: str,
        request: int,
        ttl: int,
        demand: Demand,
        once: bool,
        wait: float,
        reports: Sequence[tuple[int, Sequence[Report]]],
        alive: Alive | None,
    ) -> Lease | None:
        """Takes the reports that ride along; waits for the first message. Who has no `alive` is near: served first."""
        await self.settle(reports)

        def grant() -> Lease | None:
            lease = self.queue.lease(limit, owner=owner, request=request, ttl=ttl, demand=demand, once=once)
            if lease is not None:
                self._arm()
            return lease

        if alive is not None and not alive():
            return None
        lease = grant()
        if lease is not None or wait <= 0:
            return lease
        parked = _Parked(grant, alive)
        (self._parked.appendleft if alive is None else self._parked.append)(parked)
        try:
            return await self._node.wait(parked.answer, wait)
        finally:
            if parked in self._parked:
                self._parked.remove(parked)

    async def settle(self, reports: Sequence[tuple[int, Sequence[Report]]]) -> int:
        """Reports by lease."""
        return self._woken(sum([self.queue.settle(lease, of_lease) for lease, of_lease in reports]))

    async def release(self, lease: int, runs: Sequence[Run]) -> int:
        """Not started."""
        return self._woken(self.queue.release(lease, runs))

    async def agree(self, lease: int, runs: Sequence[Run]) -> int:
        """Cancelled before they were started."""
        return self._woken(self.queue.agree(lease, runs))

    async def heartbeat(
        self, owner: str, held: Mapping[int, tuple[int, int]], open: Collection[int], sent: int, ttl: int
    ) -> dict[int, tuple[Run, ...]]:
        """Answers what to cancel."""
        cancels = self.queue.heartbeat(owner, held, open, sent, ttl)
        self._wake()
        return cancels

    # -- admin

    async def cancel(self, runs: Sequence[Run]) -> int:
        """End them, or ask their owners."""
        return self._woken(self.queue.cancel(runs))

    async def requeue(self, names: Sequence[TaskName]) -> int:
        """Run dead letters again."""
        return self._woken(self.queue.requeue(names))

    def owner_lost(self, owner: str) -> None:
        """The directory says so."""
        self.queue.owner_lost(owner)
        self._wake()

    async def resubmitted(self, client: str) -> None:
        """`client` has put again what an earlier life of the queue lost."""
        self._expected.discard(client)
        self._wake()

    async def join(self, wait: float) -> JoinState:
        """Waits until nothing is unfinished."""
        if not self._idle() and wait > 0:
            quiet: Promise[None] = Promise()
            self._joins.append(quiet)
            await self._node.wait(quiet, wait)
            if quiet in self._joins:
                self._joins.remove(quiet)
        puts, unfinished = self.queue.puts, self.queue.unfinished
        return JoinState(self.queue.uuid, puts, puts - unfinished, self._idle())

    def hand_over(self) -> tuple[HandOver, tuple[str, ...]]:
        """Close the queue: everything it holds, and which clients it waits for. Who waits here learns that it moved."""
        state = self.queue.hand_over()
        if self._timer is not None:
            self._timer.cancel()
        for parked in self._parked:
            parked.answer.resolve(None)
        for waiting in [*self._early.values(), *self._polls.values(), *self._joins]:
            waiting.resolve(None)
        return state, tuple(sorted(self._expected))

    # -- inside

    def _woken(self, count: int) -> int:
        self._wake()
        return count

    def _wake(self) -> None:
        if self._parked and self.queue.ready:
            self._grant_parked()
        for client, news in self._polls.items():
            if self.queue.has_outcomes(client):
                news.resolve(None)
        if self._joins and self._idle():
            for quiet in self._joins:
                quiet.resolve(None)
        self._arm()

    def _grant_parked(self) -> None:
        refused: list[_Parked] = []
        while self._parked and self.queue.ready:
            parked = self._parked.popleft()
            if parked.answer.done or (parked.alive is not None and not parked.alive()):
                parked.answer.resolve(None)
                continue
            lease = parked.grant()
            if lease is None:
                refused.append(parked)
            else:
                parked.answer.resolve(lease)
        self._parked.extendleft(reversed(refused))

    def _idle(self) -> bool:
        if self.queue.unfinished or self._early:
            return False
        if self._expected and self._clock.seconds >= self._expected_until:
            self._expected.clear()
        return not self._expected

    def _arm(self) -> None:
        if self._timer is not None:
            return
        at = self.queue.next_ready_at()
        if at is None and not (self._joins and self._expected):
            return
        delay = HEARTBEAT_S if at is None else min(max((at - self._clock()) / 1e9, 0.001), HEARTBEAT_S)
        self._heard_at = self._clock.seconds + delay
        self._timer = self._node.later(delay, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        deaf = self._clock.seconds - self._heard_at
        if deaf > 2 * HEARTBEAT_S:
            self.queue.shift_deadlines(int(deaf * 1e9))
        self.queue.tick()
        self._wake()


class _Leaving(NamedTuple):
    epoch: int
    state: bytes


class SimHost:
    """The queues that one node serves, and those that are leaving it."""

    def __init__(self, node: SimNode, network: SimNetwork) -> None:
        self.queues: dict[str, SimQueue] = {}
        self.leaving: dict[str, _Leaving] = {}
        """Handed over and not taken over yet, as far as this node knows."""
        self._epochs = Epochs()
        self._node = node
        self._network = network

    def open(self, uuid: str, epoch: int, expected: Collection[str]) -> None:
        """Serve a new queue; a repeated order changes nothing."""
        if self._epochs.admits(uuid, epoch):
            self._serve(TransientQueue(clock=self._node.simulation.clock, uuid=uuid, epoch=epoch), expected)

    def hand_over(self, uuid: str, epoch: int) -> tuple[Any, ...]:
        """What the queue holds, for who serves it under `epoch`: as often as it is asked, since answers are lost."""
        if not self._epochs.admits(uuid, epoch):
            return (LOST,)
        queue = self.queues.pop(uuid, None)
        if queue is not None:
            self.leaving[uuid] = _Leaving(queue.queue.epoch, pickle.dumps(queue.hand_over()))
        leaving = self.leaving.get(uuid)
        return (LOST,) if leaving is None else (OK, leaving.state)

    async def take_over(self, uuid: str, epoch: int, source: str) -> tuple[Any, ...]:
        """Serve a queue as it was at `source`. Answers who holds leases, or that it cannot be had."""
        clock = self._node.simulation.clock
        until = clock.seconds + FETCH_S
        while uuid not in self.queues or self.queues[uuid].queue.epoch != epoch:
            if not self._epochs.admits(uuid, epoch):
                return (LOST,)
            try:
                answer = await self._fetch(uuid, epoch, source)
            except ConnectionError:
                if clock.seconds >= until:
                    return (LOST,)
                await self._node.sleep(0.05)
                continue
            if answer[0] == LOST:
                return (LOST,)
            if self._epochs.admits(uuid, epoch):  # called off meanwhile, or done for the same order that came twice
                state, expected = pickle.loads(answer[1])
                queue = TransientQueue.take_over(state, clock=clock, epoch=epoch)
                self._serve(queue, expected)
        return OK, self.queues[uuid].queue.owners()

    async def _fetch(self, uuid: str, epoch: int, source: str) -> tuple[Any, ...]:
        if source == self._node.address:
            return self.hand_over(uuid, epoch)
        content = {"queue": uuid, "epoch": epoch}
        answer: tuple[Any, ...] = await self._network.call(self._node, source, "hand_over", content)
        return answer

    def _serve(self, queue: TransientQueue, expected: Collection[str]) -> None:
        self._epochs.saw(queue.uuid, queue.epoch)
        self.leaving.pop(queue.uuid, None)
        self.queues[queue.uuid] = SimQueue(self._node, queue, expected)

    def drop(self, uuid: str, epoch: int) -> None:
        """The queue is over here, up to `epoch`."""
        self._epochs.saw(uuid, epoch)
        queue, leaving = self.queues.get(uuid), self.leaving.get(uuid)
        if queue is not None and queue.queue.epoch <= epoch:
            del self.queues[uuid]
        if leaving is not None and leaving.epoch <= epoch:
            del self.leaving[uuid]

    async def call(
        self, op: str, uuid: str, epoch: int, arguments: Mapping[str, Any], alive: Alive | None
    ) -> tuple[Any, ...]:
        """Answer an operation on a queue; `alive` is None for a caller of this very node."""
        queue = self.queues.get(uuid)
        if queue is None or queue.queue.epoch != epoch:
            return (LOST,)
        more: dict[str, Any] = {"alive": alive} if op == "lease" else {}
        try:
            value = await getattr(queue, op)(**arguments, **more)
        except QueueMoved:
            return (LOST,)
        return (OK, value) if self.queues.get(uuid) is queue else (LOST,)
