"""A consumer pool's share of one worker: lease, run, report.

`slots` calls run at once. While a slot is free, a lease request is open at each queue: parked there until something is
ready, so nothing polls. A lease brings about 90 ms of work per free slot (`pacing`), is split over them, and each
share, a `Chunk`, runs in one executor call. Reports ride on the next lease request, or go alone if none is due. A
chunk that overstays gives back its unstarted tail and whatever waits behind it.

What runs and waits is in `Slots`, requests in `Leasing`, what is still to be said in `Reporter`, what heartbeats say in
`LeaseBook`. All else is touched on the worker's event loop only.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from distributed.core import Status

from daskqueue.consumers import DummyConsumer
from daskqueue.wire.apart import is_short_of_threads, threads_take_work
from daskqueue.wire.compat import coroutine_context, task_context
from daskqueue.wire.link import Route
from daskqueue.worker.block_cache import BlockCache
from daskqueue.worker.chunk import Chunk, Share, failed
from daskqueue.worker.job_end import JobEnd
from daskqueue.worker.leasing import Leasing
from daskqueue.worker.load import Tempo
from daskqueue.worker.reporter import Reporter
from daskqueue.worker.runners import Job, JobOptions
from daskqueue.worker.slots import Slots
from daskqueue.worker.task_executor import TaskExecutor
from daskqueue.worker.user_object import UserObject
from daskqueue.worker.waiting import resolve
from daskqueue_core.batch import Kind, Part, Run
from daskqueue_core.outcomes import Report
from daskqueue_core.pacing import Pacer
from daskqueue_core.queue import Demand, Lease
from daskqueue_core.retry import RetryPolicy

if TYPE_CHECKING:
    from daskqueue.worker.plugin import DaskQueueWorker

__all__ = ["ConsumerActor"]

logger = logging.getLogger(__name__)

POLL_S: Final = 20.0
PAUSED_S: Final = 0.1
OVERSTAY_LONGEST_S: Final = 5.0
RETRY_BACKOFF_S: Final = 0.1  # of the first of `retries=`; whoever wants others gives a RetryPolicy


class ConsumerActor:
    """Runs the messages of one pool on one worker."""

    def __init__(self, node: DaskQueueWorker, route: Route, id: str, spec: Mapping[str, Any]) -> None:
        self.id = id
        self.pool = route.pool
        self.user = UserObject(node.worker, spec["consumer_class"], id)
        self._node = node
        self.route = route
        self._spec = spec
        self._slots = Slots()
        self._reporter = Reporter(node, route)
        self._leasing = Leasing(node, route, self, self._slots, self._reporter, once=spec["early_ack"])
        self._tasks: set[asyncio.Future[Any]] = set()
        self._out: set[Chunk] = set()  # begun, and their reports not handed in: a thread ends before it says so
        self._loop = asyncio.get_running_loop()
        retries = spec.get("retries", 0)
        self._retry_policy = RetryPolicy(max_attempts=1 + retries, backoff=RETRY_BACKOFF_S) if retries else None
        lease_timeout = spec["lease_timeout"]
        self.ttl = node.ttl if lease_timeout is None else int(lease_timeout * 1e9)
        """Nanoseconds of silence after which a queue takes back what is leased here."""
        self._pacer = Pacer()
        self._tempo = Tempo()
        self.end = JobEnd(node.worker, spec["walltime"], spec["drain_before"], partial(node.leave, self))
        self._blocks = BlockCache()
        self._executor = TaskExecutor(node.worker, spec["executor"], id)
        self._starting: asyncio.Task[None] | None = None
        self.is_stopping = False
        self._ending: asyncio.Task[None] | None = None
        self._something_ended: asyncio.Future[None] = self._loop.create_future()

    # -- life

    async def start(self) -> None:
        """Load the consumer class and set it up, once, however often this is awaited; raises what that raises."""
        if self._starting is None:
            self._starting = asyncio.ensure_future(self.user.set_up())
        await asyncio.shield(self._starting)

    def resize(self, count: int) -> None:
        """Be `count` consumers from now on. 0: lease nothing more and give back what has not begun."""
        if self.is_stopping:
            return
        threads = self._node.worker.state.nthreads
        concurrency = self._spec["concurrency"]
        slots = count * (max(1, threads // max(1, count)) if concurrency is None else concurrency)
        if slots:
            self._executor.resize(slots)
        self._slots.size = slots
        if not slots:
            self._leasing.withdraw()
            self._give_back(everything=True)
        self.pump()

    def stop(self) -> asyncio.Task[None]:
        """Lease nothing more and give back what has not begun; the task ends when what runs has ended and is reported.

        Until then it must be told of heartbeats' answers and of lost queues: what it runs is leased.
        """
        if self._ending is None:
            self.is_stopping = True
            self.end.close()
            self._leasing.withdraw()
            self._give_back(everything=True)
            self._ending = self.spawn(self._end())
        return self._ending

    async def _end(self) -> None:
        me = asyncio.current_task()
        if self._starting is not None:
            await asyncio.wait([self._starting])
        while self._out or self._reporter or any(task is not me for task in self._tasks):
            self.pump()
            self._something_ended = self._loop.create_future()
            others = [task for task in self._tasks if task is not me]
            await asyncio.wait([*others, self._something_ended], return_when=asyncio.FIRST_COMPLETED)
        await self.user.tear_down()
        self._executor.close()

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- the one place where things are set in motion

    def pump(self) -> None:
        """Start what can be started, ask for more, report what has ended."""
        while (chunk := self._slots.take()) is not None:
            self._run(chunk)
        if not self.is_stopping:
            self._leasing.ask()
        for index in self._reporter.queues():
            self.spawn(self._reporter.settle(index))

    # -- leases

    def leave_to_others(self) -> None:
        """This worker does not run what comes, for a while: its parked requests would only be in the way."""
        self._leasing.leave_to_others()
        self.pump()  # which looks again when the worker may run

    def demand(self, uuid: str, free: int) -> Demand:
        """What so many free slots can use of that queue."""
        wants = self._pacer.wants(free, self._spec["batch_size"])
        have = self._blocks.bases(uuid)
        return Demand(free, wants, self.user.kinds, have, self._spec.get("tags", ()), self.end.time_left)

    def load(self) -> tuple[str, int, int, float | None]:
        """Its pool, how many run at once and now, and how long a message takes; see `worker.load`."""
        running, now = self._slots.running(), self._loop.time()
        seconds = self._tempo.per_message([(chunk.count, now - chunk.began_at) for chunk in running], now)
        return self.pool, self._slots.size, len(running), seconds

    def accept(self, index: int, uuid: str, lease: Lease, free: int) -> None:
        """Split a lease over the free slots."""
        parts: list[Part] = []
        for part in lease.parts:
            whole = self._blocks.restore(uuid, part)
            if whole is None:  # the cache let it go meanwhile: next time it is sent again
                self.spawn(self._reporter.release(index, uuid, lease.id, ((part.start, part.stop),)))
            else:
                parts.append(whole)
        share = -(-len(lease) // free)
        for some in _shares(parts, share):
            jobs: list[Share] = []
            chunk = Chunk(index, uuid, lease.id, some[0].function, jobs)
            # weak: a cycle would keep every block for the garbage collector
            overdue = partial(self._overdue_soon, weakref.ref(chunk))
            for part in some:
                try:
                    jobs.append((part.start, part.count, self._job(part, overdue)))
                except Exception as error:  # its head is damaged: these fail, and the others run
                    self._reporter.add(index, uuid, lease.id, [failed(part.start, part.count, error)])
            if jobs:
                self._slots.add(chunk)
        self.pump()

    def _job(self, part: Part, overdue: Callable[[], None]) -> Job | None:
        consumer = self.user.consumer
        assert consumer is not None, "it leases after its setup"
        if isinstance(consumer, DummyConsumer):
            return None
        lo = 0 if part.lengths else part.offset
        body = part.body if part.body is not None else b""
        options = JobOptions(
            context=self._context, private_loop=self._node.async_loop,
            control=part.control, retry=self._retry_policy, attempts=part.attempts,
            client=part.client, first=part.first, keys=part.keys,
            on_overdue=overdue,
        )  # fmt: skip
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
        try:
            if chunk.is_async:
                running = asyncio.wrap_future(self._node.async_loop.submit(chunk.run_async()))
                running.add_done_callback(partial(self._ran_async, chunk))
                self._tasks.add(running)
            else:  # not `run_in_executor`, which would wake the event loop a second time
                thread = self._executor.executor.submit(self._work, chunk)
                thread.add_done_callback(partial(self._worked, chunk))
        except Exception as error:
            if is_short_of_threads(error):  # it waits in the executor's queue, and goes back if it stays there
                logger.warning("worker %s: %s", self._node.worker.address, error)
            else:
                self._refused(chunk, error)

    def _refused(self, chunk: Chunk, error: Exception) -> None:
        """Its executor is broken, or whoever it belongs to has shut it down: its tasks fail with that.

        If all here is about to end, the worker or the interpreter, they are given back.
        """
        if self._node.worker.status not in (Status.running, Status.paused) or not threads_take_work():
            self.stop()
        self._loop.call_soon(self._ran, chunk, chunk.fail(error))

    def _begun(self, chunk: Chunk) -> None:
        """Watch a chunk that runs."""
        self._out.add(chunk)
        loop = asyncio.get_running_loop()
        chunk.began_at = loop.time()
        prefetch = self._pacer.prefetch_after(chunk.function, chunk.count)
        if prefetch:
            chunk.prefetch = loop.call_later(prefetch, self._prefetch, chunk)
        chunk.is_ending = prefetch == 0.0
        patience = self._pacer.overstay_after(chunk.function, chunk.count)
        chunk.timer = loop.call_later(patience, self._overstayed, chunk)

    def _work(self, chunk: Chunk) -> None:
        """In a thread: run `chunk`, and then what waits for a slot, one after the other."""
        following: Chunk | None = chunk
        while following is not None:
            chunk = following
            try:
                reports = chunk.run()
            except BaseException as error:  # not a task's: those are in its reports
                reports = chunk.fail(error)
            following = self._slots.next_after(chunk)
            self._loop.call_soon_threadsafe(self._ran, chunk, reports, following)

    def _worked(self, chunk: Chunk, thread: Future[None]) -> None:
        """In a thread, which has nothing more to run, or never began with `chunk`: its executor was shut down."""
        if thread.cancelled() or thread.exception() is not None:
            error = asyncio.CancelledError() if thread.cancelled() else thread.exception()
            with suppress(RuntimeError):  # the event loop is closed: the worker is gone
                self._loop.call_soon_threadsafe(self._ran, chunk, chunk.fail(error))

    def _ran_async(self, chunk: Chunk, running: asyncio.Future[list[Report]]) -> None:
        self._tasks.discard(running)
        if running.cancelled() or running.exception() is not None:
            self._ran(chunk, chunk.fail(asyncio.CancelledError() if running.cancelled() else running.exception()))
        else:
            self._ran(chunk, running.result())

    def _prefetch(self, chunk: Chunk) -> None:
        """It should be over soon: fetch the next lease meanwhile."""
        chunk.is_ending = True
        self.pump()

    def _ran(self, chunk: Chunk, reports: list[Report], following: Chunk | None = None) -> None:
        """`chunk` has ended, and its thread goes on with `following`."""
        self._slots.ended(chunk)
        resolve(self._something_ended)
        chunk.stop_timers()
        if chunk.executed:
            self._pacer.observe(chunk.function, chunk.executed, chunk.seconds, chunk.nbytes)
            self._tempo.observe(chunk.executed, chunk.seconds, self._loop.time())
        self._reporter.add(chunk.index, chunk.uuid, chunk.lease, reports)
        self._out.discard(chunk)
        if following is not None:
            self._begun(following)
        self.pump()

    def _overstayed(self, chunk: Chunk) -> None:
        """It runs much longer than it should: nothing may wait behind it that could run elsewhere, or is done."""
        chunk.is_ending = False
        self._spawn_release(chunk)
        if chunk.has_news:
            self.spawn(self._harvest(chunk))
        self._give_back(everything=False)
        if self._slots.is_full:
            self._leasing.withdraw()
        chunk.timer = asyncio.get_running_loop().call_later(chunk.patience, self._overstayed, chunk)
        chunk.patience = min(2 * chunk.patience, OVERSTAY_LONGEST_S)

    def _overdue_soon(self, chunk: weakref.ref[Chunk]) -> None:
        """In the watchdog's thread."""
        with suppress(RuntimeError):  # the event loop is closed: the worker is gone
            self._loop.call_soon_threadsafe(self._overdue, chunk)

    def _overdue(self, ref: weakref.ref[Chunk]) -> None:
        """A task of it is over its timeout and cannot be interrupted: it is reported, whatever it still does."""
        chunk = ref()
        if chunk is not None and chunk in self._slots.running():
            self._spawn_release(chunk)
            self.spawn(self._harvest(chunk))

    async def _harvest(self, chunk: Chunk) -> None:
        """Report what is done of a chunk that goes on. Pickling is user code, so not on this loop."""
        reports = await self.user.run(chunk.harvest)
        if reports:
            self._reporter.add(chunk.index, chunk.uuid, chunk.lease, reports)
            self.pump()

    def _give_back(self, *, everything: bool) -> None:
        """Give back what waits for a slot; with `everything`, the unstarted tails of what runs as well."""
        for chunk in [*self._slots.take_waiting(), *(self._slots.running() if everything else ())]:
            self._spawn_release(chunk)

    def cancel(self, uuid: str, lease: int, runs: Sequence[Run]) -> None:
        """Some of a lease is to be cancelled. What has not begun goes back, which ends it; what runs is told."""
        for chunk in [*self._slots.waiting(), *self._slots.running()]:
            if chunk.uuid == uuid and chunk.lease == lease:
                self._spawn_release(chunk)
                chunk.cancel(runs)

    def _spawn_release(self, chunk: Chunk) -> None:
        runs = chunk.take_rest()
        if runs:
            self.spawn(self._reporter.release(chunk.index, chunk.uuid, chunk.lease, runs))

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
