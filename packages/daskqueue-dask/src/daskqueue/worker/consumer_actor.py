"""A consumer pool's share of one worker: lease, run, report.

`slots` calls run at once. While a slot is free, a lease request is open at each queue: parked there until something is
ready, so nothing polls. A lease brings about 25 ms of work per free slot (`pacing`), is split over them, and each
share, a `Chunk`, runs in one executor call. Reports ride on the next lease request, or go alone if none is due. A
chunk that overstays gives back its unstarted tail and whatever waits behind it.

All state is touched on the worker's event loop only. `LeaseBook` keeps what heartbeats say of it.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from distributed.core import Status
from distributed.threadpoolexecutor import ThreadPoolExecutor

from daskqueue.consumers import ConsumerBaseClass, DummyConsumer
from daskqueue.wire.compat import coroutine_context, task_context
from daskqueue.wire.link import PoolGone, QueueReplaced, Route, SchedulerGone
from daskqueue.worker.block_cache import BlockCache
from daskqueue.worker.chunk import Chunk
from daskqueue.worker.runners import Job
from daskqueue_core.balancer import ConsumerBalancer
from daskqueue_core.batch import Kind, Part, Run
from daskqueue_core.outcomes import Report
from daskqueue_core.pacing import CAP, OVERSTAY_S, Pacer
from daskqueue_core.queue import Demand, Lease

if TYPE_CHECKING:
    from daskqueue.worker.plugin import DaskQueueWorker

__all__ = ["ConsumerActor"]

logger = logging.getLogger(__name__)

POLL_S: Final = 20.0
PAUSED_S: Final = 0.1

_GONE: Final = (QueueReplaced, PoolGone, SchedulerGone)


class ConsumerActor:
    """Runs the messages of one pool on one worker."""

    def __init__(self, node: DaskQueueWorker, route: Route, id: str, spec: Mapping[str, Any]) -> None:
        self.id = id
        self.pool = route.pool
        self._node = node
        self._route = route
        self._spec = spec
        self._slots = 0
        self._running: set[Chunk] = set()
        self._backlog: deque[Chunk] = deque()
        self._reports: dict[int, list[tuple[str, int, list[Report]]]] = {}  # index -> (uuid, lease, reports)
        self._requests: dict[int, asyncio.Task[bool]] = {}  # parked or under way, by queue index
        self._asking: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Future[Any]] = set()
        self._pacer = Pacer()
        self._balancer = ConsumerBalancer(len(route))
        self._blocks = BlockCache()
        self._stopping = False
        self._executor: Executor | None = None
        self._own_executor = False
        self._retry: asyncio.TimerHandle | None = None

    # -- life

    async def start(self) -> None:
        """Load the consumer class and set it up; raises what that raises."""
        consumer_class = pickle.loads(self._spec["consumer_class"])
        self._consumer: ConsumerBaseClass = consumer_class()
        self._kinds = tuple(int(kind) for kind in self._consumer.kinds)
        await asyncio.get_running_loop().run_in_executor(
            self._node.worker.executors["offload"], self._in_context(self._consumer.setup)
        )

    def resize(self, count: int) -> None:
        """Be `count` consumers."""
        threads = self._node.worker.state.nthreads
        concurrency = self._spec["concurrency"]
        self._slots = count * (max(1, threads // max(1, count)) if concurrency is None else concurrency)
        self._choose_executor()
        self._pump()

    def _choose_executor(self) -> None:
        wanted = self._spec["executor"]
        executors = self._node.worker.executors
        if isinstance(wanted, bytes):
            if self._executor is None:
                self._executor, self._own_executor = pickle.loads(wanted)(), True
        elif wanted != "default" or self._slots <= self._node.worker.state.nthreads:
            if wanted not in executors:
                raise ValueError(f"executor {wanted!r} is not one of this worker's: {sorted(executors)}")
            self._drop_executor()
            self._executor = executors[wanted]
        else:  # more calls at once than the worker has threads: I/O-bound work, on threads of its own
            self._drop_executor()
            self._executor = ThreadPoolExecutor(self._slots, thread_name_prefix=f"daskqueue-{self.id[:8]}")
            self._own_executor = True

    def _drop_executor(self) -> None:
        if self._own_executor and self._executor is not None:
            self._executor.shutdown(wait=False)
        self._own_executor = False

    async def stop(self, *, drain: bool) -> None:
        """Lease nothing more and give back what has not begun; return when what runs has ended and is reported.

        Without `drain` only give back: what runs is reported when it ends, and nobody waits for it here.
        """
        self._stopping = True
        if self._asking is not None:
            self._asking.cancel()
        for request in list(self._requests.values()):
            request.cancel()
        self._give_back(everything=True)
        ending = self._spawn(self._end())
        if drain:
            await asyncio.shield(ending)
        else:
            await asyncio.sleep(0)

    async def _end(self) -> None:
        me = asyncio.current_task()
        while self._running or self._reports or any(task is not me for task in self._tasks):
            self._pump()
            others = [task for task in self._tasks if task is not me]
            if others:
                await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.get_running_loop().run_in_executor(
            self._node.worker.executors["offload"], self._in_context(self._consumer.teardown)
        )
        self._drop_executor()

    def _in_context(self, call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            with task_context(self._node.worker, f"daskqueue-{type(self._consumer).__name__}"):
                return call()

        return run

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- the one place where things are set in motion

    def _pump(self) -> None:
        """Start what can be started, ask for more, report what has ended."""
        while self._backlog and len(self._running) < self._slots:
            self._run(self._backlog.popleft())
        if not self._stopping:
            self._ask()
        for index in list(self._reports):
            self._spawn(self._settle(index))

    def _ask(self) -> None:
        free = self._slots - len(self._running) - len(self._backlog)
        if free <= 0:
            if self._backlog or not self._running or not all(chunk.is_ending for chunk in self._running):
                return
            free = self._slots  # short work: fetch the next while this runs
        if self._node.worker.status != Status.running:
            if self._retry is None:
                self._retry = asyncio.get_running_loop().call_later(PAUSED_S, self._retry_now)
            if self._node.worker.status == Status.paused and free == self._slots:
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
                self._open_request(index, 1, 0.0, limit=1)
                return

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
            idle = len(self._running) + len(self._backlog) < self._slots
            if idle and not self._stopping and len(self._requests) < len(self._route):
                self._ask()

    # -- leases

    def _open_request(self, index: int, free: int, wait: float, limit: int = CAP) -> asyncio.Task[bool]:
        """Ask queue `index` for work; the result says whether it gave some. Reports that are due ride along."""
        uuid = self._route.places[index].uuid
        number = self._node.book(uuid).request()
        taken = self._take_reports(index, uuid)
        request = self._requests[index] = self._spawn(
            self._request(index, uuid, number, taken, free, wait, limit * free)
        )
        return request

    async def _request(
        self,
        index: int,
        uuid: str,
        number: int,
        taken: list[tuple[int, list[Report]]],
        free: int,
        wait: float,
        limit: int,
    ) -> bool:
        node = self._node
        book = node.book(uuid)
        demand = Demand(free, self._pacer.wants(free, self._spec["batch_size"]), self._kinds, self._blocks.bases(uuid))
        lease: Lease | None = None
        again = wait > 0
        try:
            lease = await node.link.call(
                self._route,
                index,
                "lease",
                uuid=uuid,
                limit=limit,
                owner=node.owner,
                request=number,
                ttl=node.ttl,
                demand=demand,
                once=self._spec["early_ack"],
                wait=wait,
                reports=taken,
            )
        except asyncio.CancelledError:  # withdrawn: the queue hears of it at once
            book.give_up(number)
            self._put_back(index, uuid, taken)
            self._spawn(node.heartbeat(self._route, index))
            if taken:
                asyncio.get_running_loop().call_soon(self._pump)
            raise
        except _GONE as gone:
            self._lost(index, uuid)
            again = isinstance(gone, QueueReplaced)
            if not again:
                self._stopping = True
        except Exception:
            logger.exception("pool %s: the lease request to queue %s failed", self._route.pool, index)
            self._put_back(index, uuid, taken)
            taken = []
            await asyncio.sleep(1.0)
        finally:
            if self._requests.get(index) is asyncio.current_task():
                del self._requests[index]
        for lease_id, reports in taken:
            book.settled(lease_id, sum(report.stop - report.start for report in reports))
        if lease is None:
            book.withdraw(number)
            if again:
                asyncio.get_running_loop().call_soon(self._pump)
            return False
        if not book.granted(number, lease.id, len(lease)) or self._stopping:
            self._spawn(self._release(index, uuid, lease.id, lease.runs))
            return False
        self._accept(index, uuid, lease, free)
        return True

    def _accept(self, index: int, uuid: str, lease: Lease, free: int) -> None:
        """Split a lease over the free slots."""
        parts: list[Part] = []
        for part in lease.parts:
            whole = self._blocks.restore(uuid, part)
            if whole is None:  # the cache let it go meanwhile: next time it is sent again
                self._spawn(self._release(index, uuid, lease.id, ((part.start, part.stop),)))
            else:
                parts.append(whole)
        share = -(-len(lease) // free)
        for some in _shares(parts, share):
            jobs = [(part.start, part.count, self._job(part)) for part in some]
            self._backlog.append(Chunk(index, uuid, lease.id, some[0].function, jobs))
        self._pump()

    def _job(self, part: Part) -> Job | None:
        if isinstance(self._consumer, DummyConsumer):
            return None
        lo = 0 if part.lengths else part.offset
        body = part.body if part.body is not None else b""
        options: dict[str, Any] = {"context": self._context, "private_loop": self._node.async_loop}
        if part.kind == Kind.CALL:
            return Job.of_calls(part.shared, body, part.lengths or None, lo, lo + part.count, **options)
        process_item = self._consumer.process_item
        return Job.of_items(process_item, body, part.lengths or None, lo, lo + part.count, **options)

    def _context(self, name: str) -> Any:
        if asyncio._get_running_loop() is not None:  # on the private loop, where tasks interleave
            return coroutine_context(self._node.worker)
        return task_context(self._node.worker, f"daskqueue-{name}")

    # -- running

    def _run(self, chunk: Chunk) -> None:
        self._running.add(chunk)
        count = chunk.count
        loop = asyncio.get_running_loop()
        prefetch = self._pacer.prefetch_after(chunk.function, count)
        if prefetch:
            chunk.prefetch = loop.call_later(prefetch, self._prefetch, chunk)
        chunk.is_ending = prefetch == 0.0
        patience = self._pacer.overstay_after(chunk.function, count)
        chunk.timer = loop.call_later(patience, self._overstayed, chunk)
        running: asyncio.Future[list[Report]]
        if chunk.is_async:
            running = asyncio.wrap_future(self._node.async_loop.submit(chunk.run_async()))
        else:
            assert self._executor is not None
            running = asyncio.ensure_future(loop.run_in_executor(self._executor, chunk.run))
        self._tasks.add(running)
        running.add_done_callback(partial(self._ran, chunk))

    def _prefetch(self, chunk: Chunk) -> None:
        """It should be over soon: fetch the next lease meanwhile."""
        chunk.is_ending = True
        self._pump()

    def _ran(self, chunk: Chunk, running: asyncio.Future[list[Report]]) -> None:
        self._tasks.discard(running)
        self._running.discard(chunk)
        chunk.stop_timers()
        if running.cancelled() or running.exception() is not None:
            reports = chunk.fail(asyncio.CancelledError() if running.cancelled() else running.exception())
        else:
            reports = running.result()
            if chunk.executed:
                self._pacer.observe(chunk.function, chunk.executed, chunk.seconds, chunk.nbytes)
        if reports:
            self._reports.setdefault(chunk.index, []).append((chunk.uuid, chunk.lease, reports))
        self._pump()

    def _overstayed(self, chunk: Chunk) -> None:
        """It runs much longer than it should: nothing may wait behind it that could run elsewhere, or is done."""
        chunk.is_ending = False
        self._spawn_release(chunk)
        self._spawn(self._harvest(chunk))
        self._give_back(everything=False)
        if len(self._running) >= self._slots:
            for request in list(self._requests.values()):
                request.cancel()
        chunk.timer = asyncio.get_running_loop().call_later(OVERSTAY_S, self._overstayed, chunk)

    async def _harvest(self, chunk: Chunk) -> None:
        """Report what is done of a chunk that goes on. Pickling is user code, so not on this loop."""
        executor = self._node.worker.executors["offload"]
        reports = await asyncio.get_running_loop().run_in_executor(executor, chunk.harvest)
        if reports:
            self._reports.setdefault(chunk.index, []).append((chunk.uuid, chunk.lease, reports))
            self._pump()

    def _give_back(self, *, everything: bool) -> None:
        """Give back what waits for a slot; with `everything`, the unstarted tails of what runs as well."""
        backlog = list(self._backlog)
        self._backlog.clear()
        for chunk in [*backlog, *(self._running if everything else ())]:
            self._spawn_release(chunk)

    def give_back(self, uuid: str, lease: int) -> None:
        """Some of a lease is to be cancelled: give its unstarted tail back, which ends those."""
        for chunk in [*self._backlog, *self._running]:
            if chunk.uuid == uuid and chunk.lease == lease:
                self._spawn_release(chunk)

    def _spawn_release(self, chunk: Chunk) -> None:
        runs = chunk.take_rest()
        if runs:
            self._spawn(self._release(chunk.index, chunk.uuid, chunk.lease, runs))

    # -- telling the queue

    def _take_reports(self, index: int, uuid: str) -> list[tuple[int, list[Report]]]:
        """What is to be reported to this life of the queue; what belongs to an older one is dropped."""
        return [(lease, reports) for of, lease, reports in self._reports.pop(index, ()) if of == uuid]

    def _put_back(self, index: int, uuid: str, taken: list[tuple[int, list[Report]]]) -> None:
        """These were not answered: they go with the next message. Reporting twice is harmless."""
        if taken:
            self._reports.setdefault(index, []).extend((uuid, lease, reports) for lease, reports in taken)

    async def _settle(self, index: int) -> None:
        uuid = self._route.places[index].uuid
        taken = self._take_reports(index, uuid)
        if not taken:
            return
        try:
            await self._node.link.call(self._route, index, "settle", uuid=uuid, reports=taken)
        except _GONE:
            self._lost(index, uuid)
            return
        book = self._node.book(uuid)
        for lease, reports in taken:
            book.settled(lease, sum(report.stop - report.start for report in reports))

    async def _release(self, index: int, uuid: str, lease: int, runs: Sequence[Run]) -> None:
        try:
            await self._node.link.call(self._route, index, "release", uuid=uuid, lease=lease, runs=tuple(runs))
        except _GONE:
            self._lost(index, uuid)
        else:
            self._node.book(uuid).settled(lease, sum(stop - start for start, stop in runs))

    def _lost(self, index: int, uuid: str) -> None:
        self._node.queue_lost(uuid)

    def queue_lost(self, uuid: str) -> None:
        """That life of a queue is over: what has not begun is somebody else's now, reports are for nobody."""
        self._blocks.forget(uuid)
        self._backlog = deque(chunk for chunk in self._backlog if chunk.uuid != uuid)
        for chunk in self._running:
            if chunk.uuid == uuid:
                chunk.take_rest()
        for index, waiting in list(self._reports.items()):
            still = [report for report in waiting if report[0] != uuid]
            if still:
                self._reports[index] = still
            else:
                del self._reports[index]


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
