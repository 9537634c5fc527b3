"""A consumer pool's share of one worker: lease, run, report.

`slots` calls run at once. While a slot is free, a lease request is open at each queue: parked there until something is
ready, so nothing polls. A lease brings about 25 ms of work per free slot (`pacing`), is split over them, and each
share, a `Chunk`, runs in one executor call. Reports ride on the next lease request, or go alone if none is due. A
chunk that overstays gives back its unstarted tail and whatever waits behind it.

What runs and waits is in `Slots`, what is still to be said to the queues in `Reporter`, what heartbeats say in
`LeaseBook`. All else is touched on the worker's event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from distributed.core import Status

from daskqueue.consumers import DummyConsumer
from daskqueue.wire.compat import coroutine_context, task_context
from daskqueue.wire.link import QueueReplaced, Route
from daskqueue.worker.block_cache import BlockCache
from daskqueue.worker.chunk import Chunk, failed
from daskqueue.worker.reporter import AGAIN_S, GONE, Reporter
from daskqueue.worker.runners import Job
from daskqueue.worker.slots import Slots
from daskqueue.worker.task_executor import TaskExecutor
from daskqueue.worker.user_object import UserObject
from daskqueue_core.balancer import ConsumerBalancer
from daskqueue_core.batch import Kind, Part
from daskqueue_core.outcomes import Report
from daskqueue_core.pacing import CAP, Pacer
from daskqueue_core.queue import Demand, Lease

if TYPE_CHECKING:
    from daskqueue.worker.plugin import DaskQueueWorker

__all__ = ["ConsumerActor"]

POLL_S: Final = 20.0
PAUSED_S: Final = 0.1
OVERSTAY_LONGEST_S: Final = 5.0


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
        self.reports: list[tuple[int, list[Report]]] = []  # that ride along
        self.while_paused = False  # for the one message that a paused worker may take
        self.begun = False
        self.task: asyncio.Task[bool]


class ConsumerActor:
    """Runs the messages of one pool on one worker."""

    def __init__(self, node: DaskQueueWorker, route: Route, id: str, spec: Mapping[str, Any]) -> None:
        self.id = id
        self.pool = route.pool
        self.user = UserObject(node.worker, spec["consumer_class"], id)
        self._node = node
        self._route = route
        self._spec = spec
        self._slots = Slots()
        self._reporter = Reporter(node, route, node.queue_lost)
        self._requests: dict[int, _Ask] = {}  # by queue index
        self._asking: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Future[Any]] = set()
        self._pacer = Pacer()
        self._balancer = ConsumerBalancer(len(route))
        self._blocks = BlockCache()
        self._executor = TaskExecutor(node.worker, spec["executor"], id)
        self._starting: asyncio.Task[None] | None = None
        self._stopping = False
        self._ending: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None

    # -- life

    async def start(self) -> None:
        """Load the consumer class and set it up, once, however often this is awaited; raises what that raises."""
        if self._starting is None:
            self._starting = asyncio.ensure_future(self.user.set_up())
        await asyncio.shield(self._starting)

    def resize(self, count: int) -> None:
        """Be `count` consumers from now on. 0: lease nothing more and give back what has not begun."""
        if self._stopping:
            return
        threads = self._node.worker.state.nthreads
        concurrency = self._spec["concurrency"]
        slots = count * (max(1, threads // max(1, count)) if concurrency is None else concurrency)
        if slots:
            self._executor.resize(slots)
        self._slots.size = slots
        if not slots:
            self._withdraw()
            self._give_back(everything=True)
        self._pump()

    def stop(self) -> asyncio.Task[None]:
        """Lease nothing more and give back what has not begun; the task ends when what runs has ended and is reported.

        Until then it must be told of heartbeats' answers and of lost queues: what it runs is leased.
        """
        if self._ending is None:
            self._stopping = True
            self._withdraw()
            self._give_back(everything=True)
            self._ending = self._spawn(self._end())
        return self._ending

    async def _end(self) -> None:
        me = asyncio.current_task()
        if self._starting is not None:
            await asyncio.wait([self._starting])
        while self._slots.running() or self._reporter or any(task is not me for task in self._tasks):
            self._pump()
            others = [task for task in self._tasks if task is not me]
            if others:
                await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
        await self.user.tear_down()
        self._executor.close()

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- the one place where things are set in motion

    def _pump(self) -> None:
        """Start what can be started, ask for more, report what has ended."""
        while (chunk := self._slots.take()) is not None:
            self._run(chunk)
        if not self._stopping:
            self._ask()
        for index in self._reporter.queues():
            self._spawn(self._reporter.settle(index))

    def _ask(self) -> None:
        if not self._slots.size:
            return
        free = self._slots.free
        if free <= 0:
            running = self._slots.running()
            if self._slots.is_waiting or not running or not all(chunk.is_ending for chunk in running):
                return
            free = self._slots.size  # short work: fetch the next while this runs
        if self._node.worker.status != Status.running:
            if self._retry is None:
                self._retry = asyncio.get_running_loop().call_later(PAUSED_S, self._retry_now)
            if self._node.worker.status == Status.paused and free == self._slots.size:
                self._ask_while_paused()
            return
        if len(self._route) == 1:
            if 0 not in self._requests:
                self._open_request(0, free, POLL_S)
        elif self._asking is None:
            self._asking = self._spawn(self._ask_in_turn(free))

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
            self._withdraw()
        self._pump()  # which looks again when the worker may run

    def _withdraw(self) -> None:
        """Wait for no lease any more; the queues hear of it at once."""
        if self._asking is not None:
            self._asking.cancel()
        for ask in list(self._requests.values()):
            ask.task.cancel()

    def _retry_now(self) -> None:
        self._retry = None
        if not self._stopping:
            self._pump()

    async def _ask_in_turn(self, free: int) -> None:
        """Ask one queue after the other; when all are empty, park a request at each."""
        try:
            for index in self._balancer.order():
                if index not in self._requests and await self._open_request(index, free, 0.0):
                    self._balancer.granted(index)
                    return
            for index in self._balancer.order():
                if index not in self._requests:
                    self._open_request(index, free, POLL_S)
        finally:
            self._asking = None
            if self._slots.free > 0 and not self._stopping and len(self._requests) < len(self._route):
                self._ask()

    # -- leases

    def _open_request(self, index: int, free: int, wait: float, *, while_paused: bool = False) -> asyncio.Task[bool]:
        """Ask queue `index` for work; the result says whether it gave some. Reports that are due ride along."""
        uuid = self._route.places[index].uuid
        ask = self._requests[index] = _Ask(index, uuid, self._node.book(uuid).request(), free, wait)
        if while_paused:
            ask.while_paused, ask.limit = True, 1
        ask.reports = self._reporter.take(index, uuid)
        ask.task = self._spawn(self._request(ask))
        ask.task.add_done_callback(partial(self._request_ended, ask))
        return ask.task

    def _request_ended(self, ask: _Ask, task: asyncio.Task[bool]) -> None:
        if task.cancelled() and not ask.begun:  # cancelled before its first step: nobody has cleaned up
            self._forget(ask)
            self._give_up(ask)

    def _forget(self, ask: _Ask) -> None:
        if self._requests.get(ask.index) is ask:
            del self._requests[ask.index]

    def _give_up(self, ask: _Ask) -> None:
        """Its answer, if one comes, is for nobody: the queue hears of it at once. Its reports go another way."""
        book = self._node.books.get(ask.uuid)
        if book is not None:
            book.give_up(ask.number)
            self._spawn(self._node.heartbeat(self._route, ask.index))
        if ask.reports:
            self._reporter.put_back(ask.index, ask.uuid, ask.reports)
            ask.reports = []
            asyncio.get_running_loop().call_soon(self._pump)

    async def _request(self, ask: _Ask) -> bool:
        ask.begun = True
        node, index, uuid = self._node, ask.index, ask.uuid
        book = node.book(uuid)
        wants = self._pacer.wants(ask.free, self._spec["batch_size"])
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
                ttl=node.ttl,
                demand=Demand(ask.free, wants, self.user.kinds, self._blocks.bases(uuid)),
                once=self._spec["early_ack"],
                wait=ask.wait,
                reports=ask.reports,
            )
        except asyncio.CancelledError:  # withdrawn
            self._give_up(ask)
            raise
        except GONE as gone:
            node.queue_lost(uuid)
            again = isinstance(gone, QueueReplaced)
            if not again:
                self._stopping = True
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
                asyncio.get_running_loop().call_soon(self._pump)
            return False
        if not book.granted(ask.number, lease.id, len(lease)) or not self._may_take(ask):
            self._spawn(self._reporter.release(index, uuid, lease.id, lease.runs))
            asyncio.get_running_loop().call_soon(self._pump)
            return False
        self._accept(index, uuid, lease, ask.free)
        return True

    def _may_take(self, ask: _Ask) -> bool:
        """Whether what came of a request is still wanted: the worker may have been paused, or all this stopped."""
        if self._stopping or not self._slots.size:
            return False
        return ask.while_paused or bool(self._node.worker.status == Status.running)

    def _accept(self, index: int, uuid: str, lease: Lease, free: int) -> None:
        """Split a lease over the free slots."""
        parts: list[Part] = []
        for part in lease.parts:
            whole = self._blocks.restore(uuid, part)
            if whole is None:  # the cache let it go meanwhile: next time it is sent again
                self._spawn(self._reporter.release(index, uuid, lease.id, ((part.start, part.stop),)))
            else:
                parts.append(whole)
        share = -(-len(lease) // free)
        for some in _shares(parts, share):
            jobs = []
            for part in some:
                try:
                    jobs.append((part.start, part.count, self._job(part)))
                except Exception as error:  # its head is damaged: these fail, and the others run
                    self._reporter.add(index, uuid, lease.id, [failed(part.start, part.count, error)])
            if jobs:
                self._slots.add(Chunk(index, uuid, lease.id, some[0].function, jobs))
        self._pump()

    def _job(self, part: Part) -> Job | None:
        consumer = self.user.consumer
        assert consumer is not None, "it leases after its setup"
        if isinstance(consumer, DummyConsumer):
            return None
        lo = 0 if part.lengths else part.offset
        body = part.body if part.body is not None else b""
        options: dict[str, Any] = {"context": self._context, "private_loop": self._node.async_loop}
        if part.kind == Kind.CALL:
            return Job.of_calls(part.shared, body, part.lengths or None, lo, lo + part.count, **options)
        return Job.of_items(consumer.process_item, body, part.lengths or None, lo, lo + part.count, **options)

    def _context(self, name: str) -> Any:
        if asyncio._get_running_loop() is not None:  # on the private loop, where tasks interleave
            return coroutine_context(self._node.worker)
        return task_context(self._node.worker, f"daskqueue-{name}")

    # -- running

    def _run(self, chunk: Chunk) -> None:
        """Begin a chunk that has a slot, on the private loop or in a thread that goes on with what waits then."""
        self._begun(chunk)
        loop = asyncio.get_running_loop()
        running: asyncio.Future[Any]
        if chunk.is_async:
            running = asyncio.wrap_future(self._node.async_loop.submit(chunk.run_async()))
            running.add_done_callback(partial(self._ran_async, chunk))
        else:
            running = asyncio.ensure_future(loop.run_in_executor(self._executor.executor, self._work, chunk, loop))
            running.add_done_callback(partial(self._worked, chunk))
        self._tasks.add(running)

    def _begun(self, chunk: Chunk) -> None:
        """Watch a chunk that runs."""
        loop = asyncio.get_running_loop()
        prefetch = self._pacer.prefetch_after(chunk.function, chunk.count)
        if prefetch:
            chunk.prefetch = loop.call_later(prefetch, self._prefetch, chunk)
        chunk.is_ending = prefetch == 0.0
        patience = self._pacer.overstay_after(chunk.function, chunk.count)
        chunk.timer = loop.call_later(patience, self._overstayed, chunk)

    def _work(self, chunk: Chunk, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: run `chunk`, and then what waits for a slot, one after the other."""
        following: Chunk | None = chunk
        while following is not None:
            chunk = following
            try:
                reports = chunk.run()
            except BaseException as error:  # not a task's: those are in its reports
                reports = chunk.fail(error)
            following = self._slots.next_after(chunk)
            loop.call_soon_threadsafe(self._ran, chunk, reports, following)

    def _worked(self, chunk: Chunk, running: asyncio.Future[None]) -> None:
        """A thread has nothing more to run, or never began with `chunk`: its executor was shut down."""
        self._tasks.discard(running)
        if running.cancelled() or running.exception() is not None:
            self._ran(chunk, chunk.fail(asyncio.CancelledError() if running.cancelled() else running.exception()))

    def _ran_async(self, chunk: Chunk, running: asyncio.Future[list[Report]]) -> None:
        self._tasks.discard(running)
        if running.cancelled() or running.exception() is not None:
            self._ran(chunk, chunk.fail(asyncio.CancelledError() if running.cancelled() else running.exception()))
        else:
            self._ran(chunk, running.result())

    def _prefetch(self, chunk: Chunk) -> None:
        """It should be over soon: fetch the next lease meanwhile."""
        chunk.is_ending = True
        self._pump()

    def _ran(self, chunk: Chunk, reports: list[Report], following: Chunk | None = None) -> None:
        """`chunk` has ended, and its thread goes on with `following`."""
        self._slots.ended(chunk)
        chunk.stop_timers()
        if chunk.executed:
            self._pacer.observe(chunk.function, chunk.executed, chunk.seconds, chunk.nbytes)
        self._reporter.add(chunk.index, chunk.uuid, chunk.lease, reports)
        if following is not None:
            self._begun(following)
        self._pump()

    def _overstayed(self, chunk: Chunk) -> None:
        """It runs much longer than it should: nothing may wait behind it that could run elsewhere, or is done."""
        chunk.is_ending = False
        self._spawn_release(chunk)
        if chunk.has_news:
            self._spawn(self._harvest(chunk))
        self._give_back(everything=False)
        if self._slots.is_full:
            self._withdraw()
        chunk.timer = asyncio.get_running_loop().call_later(chunk.patience, self._overstayed, chunk)
        chunk.patience = min(2 * chunk.patience, OVERSTAY_LONGEST_S)

    async def _harvest(self, chunk: Chunk) -> None:
        """Report what is done of a chunk that goes on. Pickling is user code, so not on this loop."""
        reports = await self.user.run(chunk.harvest)
        if reports:
            self._reporter.add(chunk.index, chunk.uuid, chunk.lease, reports)
            self._pump()

    def _give_back(self, *, everything: bool) -> None:
        """Give back what waits for a slot; with `everything`, the unstarted tails of what runs as well."""
        for chunk in [*self._slots.take_waiting(), *(self._slots.running() if everything else ())]:
            self._spawn_release(chunk)

    def give_back(self, uuid: str, lease: int) -> None:
        """Some of a lease is to be cancelled: give its unstarted tail back, which ends those."""
        for chunk in [*self._slots.waiting(), *self._slots.running()]:
            if chunk.uuid == uuid and chunk.lease == lease:
                self._spawn_release(chunk)

    def _spawn_release(self, chunk: Chunk) -> None:
        runs = chunk.take_rest()
        if runs:
            self._spawn(self._reporter.release(chunk.index, chunk.uuid, chunk.lease, runs))

    def queue_lost(self, uuid: str) -> None:
        """That life of a queue is over: what has not begun is somebody else's now, reports are for nobody."""
        self._blocks.forget(uuid)
        self._slots.take_waiting(uuid)
        for chunk in self._slots.running():
            if chunk.uuid == uuid:
                chunk.take_rest()
        self._reporter.queue_lost(uuid)


def _shares(parts: Sequence[Part], size: int) -> list[list[Part]]:
    """`parts` cut into shares of `size` messages, in order."""
    shares: list[list[Part]] = []
    room = 0
    for part in parts:
        while part.count:
            if room == 0:
                shares.append([])
                room = size
            count = min(room, part.count)
            first, part = part.cut(count)
            shares[-1].append(first)
            room -= count
    return shares
