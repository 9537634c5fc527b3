"""The clients of a simulated cluster: they submit, collect, put again what was lost, and join.

A client drives a `ProducerStream` for each queue as the adapter's submitter and collector do, without the buffer
before it: each `submit` is a batch.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Coroutine
from typing import Any, Final

from daskqueue_core.balancer import RoundRobin
from daskqueue_core.batch import Batch, Keep, Kind, lengths_column
from daskqueue_core.errors import DuplicateKey, QueueLost, TaskExpired, WorkerCrashed
from daskqueue_core.joining import JoinRounds
from daskqueue_core.ledger import Early
from daskqueue_core.outcomes import End
from daskqueue_core.producer import WINDOW, Delivery, LostBatch, ProducerStream, PutRequest
from daskqueue_core.queue import Accepted, Full
from daskqueue_core.testing.network import SimNetwork
from daskqueue_core.testing.sim_link import SCHEDULER, PoolGone, QueueReplaced, SimLink
from daskqueue_core.testing.sim_work import SimWork, encode_work
from daskqueue_core.testing.simulation import Promise, SimNode, Simulation

__all__ = ["SimCancelled", "SimClient", "SimFuture"]

POLL_S: Final = 20.0
JOIN_WAIT_S: Final = 20.0


class SimCancelled(Exception):
    """The message was cancelled and did not run."""


class SimFuture:
    """How a message ended. To end it twice is an error."""

    def __init__(self, number: int, work: int) -> None:
        self.number = number
        self.work = work
        self.done = False
        self.value: Any = None
        self.error: BaseException | None = None
        self._callbacks: list[Callable[[SimFuture], Any]] = []

    def when_done(self, callback: Callable[[SimFuture], Any]) -> None:
        """Call `callback` with this future when it ends."""
        self._callbacks.append(callback)

    def end(self, value: Any, error: BaseException | None) -> None:
        """The client has heard of it."""
        assert not self.done, f"task {self.number} ended twice"
        self.done, self.value, self.error = True, value, error
        for callback in self._callbacks:
            callback(self)

    def result(self) -> Any:
        """Its value, or its error raised."""
        assert self.done, f"task {self.number} has not ended"
        if self.error is not None:
            raise self.error
        return self.value


class SimClient(SimNode):
    """A client of one pool. `id` is what a real one draws at random."""

    def __init__(
        self,
        simulation: Simulation,
        network: SimNetwork,
        address: str,
        id: int,
        works: list[SimWork],
        window: int = WINDOW,
    ) -> None:
        super().__init__(simulation, address)
        self.id = id
        self.link = SimLink(network, self, "pool")
        self.over: BaseException | None = None
        self.futures: list[SimFuture] = []
        self.streams: list[ProducerStream] = []
        self._network = network
        self._works = works
        self._window = window
        self._numbers = 0
        self._lives = 0
        self._items_lost = 0
        self._resubmit = True
        self._idle: list[Promise[None]] = []
        self._quiet: list[Promise[None]] = []

    def start(self, *, resubmit: bool) -> None:
        """Begin to listen; the link knows the places."""
        self._resubmit = resubmit
        self._balancer = RoundRobin(len(self.link.places))
        self.streams = [ProducerStream(place.uuid, self._new_id, window=self._window) for place in self.link.places]
        for index in range(len(self.streams)):
            self.spawn(self._poll, index)

    def _new_id(self) -> int:
        self._lives += 1
        return self.id << 32 | self._lives

    # -- out

    def submit(
        self,
        count: int = 1,
        seconds: float = 0.0,
        value: Any = None,
        *,
        run: Callable[[], Any] | None = None,
        works: list[SimWork] | None = None,
        queue: int | None = None,
        block: bool = False,
        function: bytes = b"f",
        keep: Keep = Keep.STREAM,
        holds_gil: bool = False,
        **options: Any,
    ) -> list[SimFuture]:
        """Submit `count` messages that do the same, or `works`, as one batch, as singles or as one block.

        `options`: other fields of the batch.
        """
        if self.over is not None:
            raise self.over
        first_work = len(self._works)
        self._works.extend(works if works is not None else [SimWork(seconds, value, run, holds_gil)] * count)
        count = len(self._works) - first_work
        first, self._numbers = self._numbers, self._numbers + count
        bodies = [encode_work(first_work + at) for at in range(1 if block else count)]
        batch = Batch(
            count,
            b"".join(bodies),
            b"" if block else lengths_column(bodies),
            kind=Kind.CALL,
            function=function,
            client=self.id,
            first=first,
            keep=keep,
            **options,
        )
        futures: list[SimFuture] = []
        if keep != Keep.NONE:
            futures = [SimFuture(first + at, first_work + at) for at in range(count)]
            self.futures += futures
        index = self._balancer.pick() if queue is None else queue
        self.streams[index].offer(batch, futures)
        self.kick(index)
        return futures

    def kick(self, index: int) -> None:
        """Send what the window of queue `index` lets through."""
        stream = self.streams[index]
        while (put := stream.next_put()) is not None:
            self.spawn(self._put, index, stream.uuid, put)

    async def _put(self, index: int, uuid: str, put: PutRequest) -> None:
        stream = self.streams[index]
        try:
            while True:
                content: dict[str, Any] = {"batches": put.batches, "producer": put.producer, "number": put.number}
                answer = await self.link.call(index, "admit", uuid=uuid, **content)
                if not isinstance(answer, (Early, Full)):
                    break
        except QueueReplaced:
            self._replaced(index)
            return
        except PoolGone as gone:
            self._end(gone)
            return
        if isinstance(answer, Accepted):
            stream.accepted(put)
        else:
            stream.unknown(put)
        self.kick(index)
        if all(stream.idle for stream in self.streams):
            _release(self._idle)

    async def flush(self) -> None:
        """Wait until everything submitted was admitted."""
        while self.over is None and not all(stream.idle for stream in self.streams):
            idle: Promise[None] = Promise()
            self._idle.append(idle)
            await idle

    # -- in

    async def _poll(self, index: int) -> None:
        stream = self.streams[index]
        while self.over is None:
            uuid = stream.uuid
            content: dict[str, Any] = {"client": self.id, "cursor": stream.cursor, "wait": POLL_S}
            try:
                answer = await self.link.call(index, "poll", uuid=uuid, **content)
            except QueueReplaced:
                self._replaced(index)
                await self.sleep(0)
                continue
            except PoolGone as gone:
                self._end(gone)
                return
            if stream.uuid != uuid:  # what it says is about another life
                continue
            for delivery in stream.receive(answer):
                _deliver(delivery)
            self._check_quiet()

    def _check_quiet(self) -> None:
        if not any(stream.pending for stream in self.streams):
            _release(self._quiet)

    # -- losses

    def _replaced(self, index: int) -> None:
        """The queue has another life: put again what is unfinished."""
        stream, uuid = self.streams[index], self.link.places[index].uuid
        if stream.uuid == uuid or self.over is not None:
            return
        self._items_lost += stream.items_accepted
        stream.items_accepted = 0
        for batch in stream.queue_lost(uuid, resubmit=self._resubmit):
            _lose(batch, SimCancelled() if batch.cancelled else QueueLost("the queue was lost with its host"))
        self.kick(index)
        self._check_quiet()
        self.spawn(self._resubmitted, index, uuid)

    async def _resubmitted(self, index: int, uuid: str) -> None:
        try:
            await self.flush()
            await self.link.call(index, "resubmitted", uuid=uuid, client=self.address)
        except (QueueReplaced, PoolGone):
            pass

    def _end(self, error: BaseException) -> None:
        """Nothing more will come."""
        if self.over is None:
            self.over = error
            for stream in self.streams:
                for batch in stream.abandon():
                    _lose(batch, QueueLost("the pool is over"))
            _release(self._idle)
            _release(self._quiet)

    # -- waiting

    def join(self) -> Coroutine[Any, Any, int]:
        """Wait until all queues are done and every outcome is here; returns how many rounds it took."""
        return self._join(JoinRounds())

    async def _join(self, rounds: JoinRounds) -> int:
        count = 0
        while True:
            await self.flush()
            if self.over is not None:
                raise self.over
            wait = JOIN_WAIT_S if rounds.patient else 0.0
            indexes = range(len(self.streams))
            asked = [self.spawn(self.link.call, index, "join", wait=wait) for index in indexes]
            states = [await task for task in asked]
            count += 1
            if rounds.done(states):
                break
        while any(stream.pending for stream in self.streams):
            quiet: Promise[None] = Promise()
            self._quiet.append(quiet)
            await quiet
        lost, self._items_lost = self._items_lost, 0
        for stream in self.streams:
            stream.items_accepted = 0
        if lost:
            raise QueueLost(f"up to {lost} items were lost with their queue")
        return count

    async def reconnect(self) -> None:
        """The client's connection to the scheduler is back."""
        await self._network.call(self, SCHEDULER, "client_came", {"client": self.address})


def _release(promises: list[Promise[None]]) -> None:
    for promise in promises:
        promise.resolve(None)
    promises.clear()


def _deliver(delivery: Delivery) -> None:
    """What the runs of an outcome mean for the futures."""
    outcome = delivery.outcome
    errors = {at: pickle.loads(blob) for at, blob, _ in outcome.errors}
    values = pickle.loads(outcome.values) if outcome.values else [None] * outcome.count
    for lo, hi in delivery.runs:
        for at in range(lo, hi):
            error = errors.get(at)
            if outcome.end == End.CANCELLED:
                error = SimCancelled()
            elif outcome.end == End.CRASHED:
                error = WorkerCrashed("the worker died, and the task is not run again")
            elif outcome.end == End.EXPIRED:
                error = TaskExpired("not started in time")
            elif outcome.end == End.DUPLICATE:
                error = DuplicateKey("its key is in use")
            delivery.sink[delivery.shift + at].end(values[at] if error is None else None, error)


def _lose(lost: LostBatch, error: BaseException) -> None:
    for lo, hi in lost.runs:
        for future in lost.sink[lost.shift + lo : lost.shift + hi]:
            future.end(None, error)
