"""The consumer of a simulated worker: leases, runs, reports, speaks up every second, gives back what waits too long.

It drives a `LeaseBook`, a `Pacer` and a `ConsumerBalancer` as the adapter's consumer actor does. To run a message
takes simulated time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import isawaitable
from typing import Any, Final

from daskqueue_core.balancer import ConsumerBalancer
from daskqueue_core.batch import Kind, Run
from daskqueue_core.consumer import LeaseBook, RequestNumbers
from daskqueue_core.errors import QueueUnavailable
from daskqueue_core.outcomes import Report
from daskqueue_core.pacing import CAP, Pacer
from daskqueue_core.queue import Demand, Lease
from daskqueue_core.testing.sim_host import HEARTBEAT_S
from daskqueue_core.testing.sim_link import PoolGone, QueueReplaced, SimLink
from daskqueue_core.testing.sim_work import SimChunk, SimDone, SimWork, Start, todo_of
from daskqueue_core.testing.simulation import Cancelled, SimNode, Task

__all__ = ["SimConsumer"]

POLL_S: Final = 20.0
OVERSTAY_LONGEST_S: Final = 5.0


class SimConsumer:
    """Runs the messages of one pool on one node."""

    def __init__(
        self, node: SimNode, link: SimLink, owner: str, works: Sequence[SimWork], started: Callable[[int, Start], None]
    ) -> None:
        self.owner = owner
        self.slots = 0
        self.stopping = False
        self.ttl = 300 * 10**9
        self.early_ack = False
        self.pacer = Pacer()
        self.books: dict[str, LeaseBook] = {}
        self._node = node
        self._link = link
        self._works = works
        self._started = started
        self._numbers = RequestNumbers()
        self._balancer: ConsumerBalancer | None = None
        self._running: list[SimChunk] = []
        self._backlog: deque[SimChunk] = deque()
        self._reports: dict[int, list[tuple[str, int, list[Report]]]] = {}
        self._requests: dict[int, Task[bool]] = {}
        self._asking: Task[None] | None = None
        self._beats: dict[str, int] = {}

    # -- life

    def resize(self, slots: int, spec: Mapping[str, Any]) -> None:
        """Run `slots` messages at once; with none, give back what has not begun."""
        self.ttl, self.early_ack = spec["ttl"], spec["early_ack"]
        if self._balancer is None:
            self._balancer = ConsumerBalancer(len(self._link.places))
            self._node.spawn(self._beat)
        self.slots = slots
        if not slots:
            self._leave()
        self.pump()

    def stop(self) -> None:
        """Lease nothing more, and give back what has not begun."""
        self.stopping = True
        self._leave()

    def _leave(self) -> None:
        if self._asking is not None:
            self._cancel(self._asking)
        self._withdraw()
        self._give_back(everything=True)

    def book(self, uuid: str) -> LeaseBook:
        """The requests and leases at a queue."""
        return self.books.setdefault(uuid, LeaseBook(self._numbers))

    def pump(self) -> None:
        """Start what can be started, ask for more, report what has ended."""
        while self._backlog and len(self._running) < self.slots:
            self._run(self._backlog.popleft())
        if not self.stopping:
            self._ask()
        for index in list(self._reports):
            self._node.spawn(self._settle, index)

    # -- leases

    def _ask(self) -> None:
        free = self.slots - len(self._running) - len(self._backlog)
        if free <= 0:
            if (
                not self.slots
                or self._backlog
                or not self._running
                or not all(chunk.is_ending for chunk in self._running)
            ):
                return
            free = self.slots
        if len(self._link.places) == 1:
            if 0 not in self._requests:
                self._open_request(0, free, POLL_S)
        elif self._asking is None:
            self._asking = self._node.spawn(self._ask_in_turn, free)

    async def _ask_in_turn(self, free: int) -> None:
        """Ask one queue after the other; when all are empty, park a request at each."""
        balancer = self._balancer
        assert balancer is not None
        try:
            for index in balancer.order():
                if index not in self._requests and await self._open_request(index, free, 0.0):
                    balancer.granted(index)
                    return
            for index in balancer.order():
                if index not in self._requests:
                    self._open_request(index, free, POLL_S)
        finally:
            self._asking = None
            idle = len(self._running) + len(self._backlog) < self.slots
            if idle and not self.stopping and len(self._requests) < len(self._link.places):
                self._ask()

    def _open_request(self, index: int, free: int, wait: float) -> Task[bool]:
        uuid = self._link.places[index].uuid
        number = self.book(uuid).request()
        taken = self._take_reports(index, uuid)
        request = self._requests[index] = self._node.spawn(self._request, index, uuid, number, taken, free, wait)
        return request

    async def _request(
        self, index: int, uuid: str, number: int, taken: list[tuple[int, list[Report]]], free: int, wait: float
    ) -> bool:
        book, node = self.book(uuid), self._node
        demand = Demand(free, self.pacer.wants(free), tuple(Kind))
        lease: Lease | None = None
        again = wait > 0
        try:
            lease = await self._link.call(
                index,
                "lease",
                uuid=uuid,
                limit=CAP * free,
                owner=self.owner,
                request=number,
                ttl=self.ttl,
                demand=demand,
                once=self.early_ack,
                wait=wait,
                reports=taken,
            )
        except Cancelled:  # withdrawn
            book.give_up(number)
            for lease_id, reports in taken:
                self._reports.setdefault(index, []).append((uuid, lease_id, reports))
            node.spawn(self.heartbeat, index)
            if self._reports:
                node.later(0, self.pump)
            raise
        except QueueReplaced:
            self._lost(uuid)
            again = True
        except PoolGone:
            self._lost(uuid)
            again, self.stopping = False, True
        finally:
            self._requests.pop(index, None)
        self._settled(uuid, taken)
        if lease is None:
            book.withdraw(number)
            if again:
                node.later(0, self.pump)
            return False
        if not book.granted(number, lease.id, len(lease)) or self.stopping or not self.slots:
            node.spawn(self._release, index, uuid, lease.id, lease.runs)
            return False
        self._accept(index, uuid, lease, free)
        return True

    def _accept(self, index: int, uuid: str, lease: Lease, free: int) -> None:
        """Split a lease over the free slots."""
        todo = todo_of(lease)
        share = -(-len(todo) // free)
        for at in range(0, len(todo), share):
            function = lease.parts[0].function
            self._backlog.append(SimChunk(index, uuid, lease.id, function, todo[at : at + share]))
        self.pump()

    # -- running

    def _run(self, chunk: SimChunk) -> None:
        self._running.append(chunk)
        count = len(chunk.todo)
        prefetch = self.pacer.prefetch_after(chunk.function, count)
        chunk.is_ending = prefetch == 0.0
        if prefetch:
            chunk.prefetch = self._node.later(prefetch, partial(self._prefetch, chunk))
        patience = self.pacer.overstay_after(chunk.function, count)
        chunk.timer = self._node.later(patience, partial(self._overstayed, chunk))
        self._node.spawn(self._run_all, chunk)

    def _prefetch(self, chunk: SimChunk) -> None:
        chunk.is_ending = True
        self.pump()

    async def _run_all(self, chunk: SimChunk) -> None:
        clock = self._node.simulation.clock
        began = clock.seconds
        while chunk.todo:
            item = chunk.todo.popleft()
            work = self._works[item.work]
            self._started(item.work, Start(clock.seconds, self._node.address, chunk.uuid, chunk.lease))
            if work.holds_gil:
                self._node.hold(work.seconds)
            if work.seconds:
                await self._node.sleep(work.seconds)
            value, error = work.value, None
            if work.run is not None:
                try:
                    value = work.run()
                    if isawaitable(value):
                        value = await value
                except Exception as raised:
                    value, error = None, raised
            chunk.done.append(SimDone(item.seq, item.base, value, error))
        self._running.remove(chunk)
        assert chunk.timer is not None
        chunk.timer.cancel()
        if chunk.prefetch is not None:
            chunk.prefetch.cancel()
        if chunk.done:
            self.pacer.observe(chunk.function, len(chunk.done), clock.seconds - began)
            self._reports.setdefault(chunk.index, []).append((chunk.uuid, chunk.lease, chunk.reports()))
        self.pump()

    def _overstayed(self, chunk: SimChunk) -> None:
        """Nothing may wait behind it that could run elsewhere."""
        chunk.is_ending = False
        self._spawn_release(chunk)
        self._give_back(everything=False)
        if len(self._running) >= self.slots:
            self._withdraw()
        chunk.timer = self._node.later(chunk.patience, partial(self._overstayed, chunk))
        chunk.patience = min(2 * chunk.patience, OVERSTAY_LONGEST_S)

    def _withdraw(self) -> None:
        for request in list(self._requests.values()):
            self._cancel(request)

    def _cancel(self, task: Task[Any]) -> None:
        """Not before its first step, which is due: a task that never began puts nothing in order."""
        self._node.later(0, task.cancel)

    def _give_back(self, *, everything: bool) -> None:
        backlog = list(self._backlog)
        self._backlog.clear()
        for chunk in [*backlog, *(self._running if everything else ())]:
            self._spawn_release(chunk)

    def _spawn_release(self, chunk: SimChunk) -> None:
        runs = chunk.take_rest()
        if runs:
            self._node.spawn(self._release, chunk.index, chunk.uuid, chunk.lease, runs)

    # -- telling the queue

    def _take_reports(self, index: int, uuid: str) -> list[tuple[int, list[Report]]]:
        return [(lease, reports) for of, lease, reports in self._reports.pop(index, ()) if of == uuid]

    async def _settle(self, index: int) -> None:
        uuid = self._link.places[index].uuid
        taken = self._take_reports(index, uuid)
        if not taken:
            return
        if await self._tell(index, "settle", uuid, reports=taken):
            self._settled(uuid, taken)

    async def _release(self, index: int, uuid: str, lease: int, runs: Sequence[Run], op: str = "release") -> None:
        if await self._tell(index, op, uuid, lease=lease, runs=tuple(runs)):
            self.book(uuid).settled(lease, sum(stop - start for start, stop in runs))

    async def _tell(self, index: int, op: str, uuid: str, **arguments: Any) -> bool:
        try:
            await self._link.call(index, op, uuid=uuid, **arguments)
        except (QueueReplaced, PoolGone):
            self._lost(uuid)
            return False
        return True

    def _settled(self, uuid: str, taken: list[tuple[int, list[Report]]]) -> None:
        for lease, reports in taken:
            self.book(uuid).settled(lease, sum(report.stop - report.start for report in reports))

    async def _beat(self) -> None:
        while True:
            await self._node.sleep(HEARTBEAT_S)
            lives = {place.uuid for place in self._link.places}
            for uuid in [uuid for uuid in self.books if uuid not in lives]:
                self._lost(uuid)
            for index, place in enumerate(self._link.places):
                if place.uuid in self.books and place.uuid not in self._beats:
                    self._node.spawn(self.heartbeat, index)

    async def heartbeat(self, index: int) -> None:
        """Tell a queue what is held and awaited there; give up what its answer says was cancelled."""
        uuid = self._link.places[index].uuid
        book = self.books.get(uuid)
        if book is None or not book.active:
            return
        held, open_, sent = book.heartbeat()
        news = {"owner": self.owner, "held": held, "open": open_, "sent": sent, "ttl": self.ttl}
        self._beats[uuid] = self._beats.get(uuid, 0) + 1
        try:
            cancels = await self._link.call(index, "heartbeat", uuid=uuid, patience=HEARTBEAT_S, **news)
        except QueueReplaced:
            self._lost(uuid)
            return
        except (QueueUnavailable, PoolGone):
            return
        finally:
            self._beats[uuid] -= 1
            if not self._beats[uuid]:
                del self._beats[uuid]
        for chunk in [*self._backlog, *self._running]:
            runs = chunk.take_rest(cancels[chunk.lease]) if chunk.uuid == uuid and chunk.lease in cancels else []
            if runs:
                self._node.spawn(self._release, index, uuid, chunk.lease, runs, "agree")

    def _lost(self, uuid: str) -> None:
        """That life of the queue is over: what has not begun is somebody else's now, reports are for nobody."""
        self.books.pop(uuid, None)
        self._backlog = deque(chunk for chunk in self._backlog if chunk.uuid != uuid)
        for chunk in self._running:
            if chunk.uuid == uuid:
                chunk.take_rest()
        for index, reports in self._reports.items():  # those for the next life may be there already
            self._reports[index] = [report for report in reports if report[0] != uuid]
