"""The stream out: calls gather into batches, a window of puts is in flight, and whoever submits too fast waits.

`submit` appends to a buffer and wakes the event loop once. The first call leaves at once; those that arrive while its
put is in flight leave together. Batches come whole, from `map` and its kin. Both go round robin over the queues.

The buffer is touched under a lock by any thread; everything else on the event loop only.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import deque
from collections.abc import Container, Sequence
from concurrent.futures import CancelledError
from queue import Full as QueueFull
from typing import Any, Final, Protocol

from daskqueue.client.futures import FutureSink, Home, KeyedFuture, Sink, TaskFuture
from daskqueue.client.gathering import BATCH_CALLS, Call, gather
from daskqueue.client.session import Session
from daskqueue.client.task_options import Terms
from daskqueue.client.trials import Trials
from daskqueue.utils import logger
from daskqueue.wire import nested
from daskqueue.wire.functions import EncodedFunction
from daskqueue.wire.link import Link, PoolGone, QueueReplaced, RemoteFailure, Route, SchedulerGone
from daskqueue.wire.storage_errors import storage_error
from daskqueue_core.balancer import RoundRobin
from daskqueue_core.batch import Batch
from daskqueue_core.errors import DaskQueueError
from daskqueue_core.ledger import Early
from daskqueue_core.outcomes import Outcomes
from daskqueue_core.producer import ProducerStream, PutRequest
from daskqueue_core.queue import Accepted, Full, PutAnswer
from daskqueue_storage.errors import DiskFullError

__all__ = ["ROOM_WAIT_S", "Owner", "Submitter", "most_in_a_put"]

BUFFER_BYTES: Final = 64 << 20
BUFFER_CALLS: Final = 100_000
COALESCE_PUTS: Final = 2
ROOM_WAIT_S: Final = 20.0
DISK_AGAIN_S: Final = 1.0
FULL_AGAIN_S: Final = 0.1  # a put that follows a refused one is refused at once
FUTURES_PER_CONDITION: Final = 128


class Owner(Home, Protocol):
    """What the streams do not decide by themselves."""

    def name_task(self, number: int, key: str) -> None:
        """The client's task `number` has this explicit key. Called by any thread."""

    async def replaced(self, index: int) -> None:
        """Queue `index` has another life; returns when its stream speaks for it, or is to be asked again."""
        raise NotImplementedError

    def deliver(self, index: int, outcomes: Outcomes) -> None:
        """Queue `index` has answered a put with its outcomes."""

    def over(self, error: BaseException) -> None:
        """Nothing more will come of this pool."""


def most_in_a_put(maxsize: int, on_full: str) -> int:
    """How many messages one put takes at most (0: no limit).

    A part of the queue's room: what fills it would have to wait until it is empty. Not if nothing is to wait.
    """
    return max(1, maxsize // 4) if maxsize and on_full == "wait" else maxsize


class Submitter:
    """Puts what one pool object submits into the pool's queues."""

    def __init__(
        self,
        session: Session,
        route: Route,
        streams: Sequence[ProducerStream],
        owner: Owner,
        *,
        maxsize: int = 0,
        on_full: str = "wait",
    ) -> None:
        self._session = session
        self._link: Link = session.link
        self._route = route
        self._streams = streams
        self._owner = owner
        self.put_calls = most_in_a_put(maxsize, on_full) or sys.maxsize  # that a batch may have
        self._batch_calls = min(BATCH_CALLS, self.put_calls)
        self._maxsize = maxsize
        self._crowd = min(maxsize or BUFFER_CALLS, BUFFER_CALLS)  # with fewer it is not full: a look without a call
        self._wait_for_room_s = ROOM_WAIT_S if on_full == "wait" else 0.0
        self._balancer = RoundRobin(len(streams), start=session.id)
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._calls: deque[Call] = deque()
        self._batches: deque[tuple[Batch, Sink | None, int]] = deque()
        self._buffered = 0  # messages in the buffer and offered to streams
        self._buffered_bytes = 0
        self._woken = False
        self._condition = threading.Condition()
        self._condition_left = FUTURES_PER_CONDITION
        self._accepted: dict[int, asyncio.Future[None]] = {}  # id of a batch -> who waits for it
        self._idle: list[asyncio.Future[None]] = []
        self._capacity: list[asyncio.Future[None]] = []
        self._answers: list[asyncio.Future[None]] = []
        self._error: BaseException | None = None
        self._refusal: BaseException | None = None  # what was taken is still sent

    # -- any thread

    def submit(
        self, function: EncodedFunction, body: bytes, terms: Terms, ready_at: int = 0, key: str | None = None
    ) -> TaskFuture:
        """Take one call. Waits for room in the buffer, except on the event loop."""
        session = self._session
        session.check_here()  # first: whoever held the lock at a fork is not here to release it
        with self._lock:
            if (self._buffered >= self._crowd or self._buffered_bytes > BUFFER_BYTES) and self._is_full():
                self._await_room()
            if self._refusal is not None:
                raise self._refusal
            if self._condition_left == 0:
                self._condition = threading.Condition()
                self._condition_left = FUTURES_PER_CONDITION
            self._condition_left -= 1
            if key is None:
                future = TaskFuture(self._owner, session.numbers(1), self._condition)
            else:
                future = KeyedFuture(self._owner, session.numbers(1), self._condition, key)
                self._owner.name_task(future.number, key)
            self._calls.append(Call(function, body, future, terms, ready_at))
            self._buffered += 1
            self._buffered_bytes += len(body)
            wake = not self._woken
            self._woken = True
        if wake:
            session.soon(self._wake)
        return future

    def send(self, batch: Batch, sink: Sink | None, shift: int = 0) -> None:
        """Take a whole batch, whose first message is number `shift` of the sink. Waits as `submit` does."""
        self._session.check_here()
        with self._lock:
            if self._is_full():
                self._await_room()
            if self._refusal is not None:
                raise self._refusal
            self._batches.append((batch, sink, shift))
            self._buffered += batch.count
            self._buffered_bytes += len(batch.body)
            wake = not self._woken
            self._woken = True
        if wake:
            self._session.soon(self._wake)

    def _await_room(self) -> None:
        """Called with the lock held; the queues' hosts or the network are slower than the caller."""
        if self._session.on_loop:
            return
        while self._refusal is None and self._is_full():
            self._room.wait(1.0)
            if not self._session.loop.is_running():
                raise DaskQueueError("the Dask client's event loop has stopped: make a new Client, and a new pool")

    # -- the event loop

    async def send_and_wait(self, batch: Batch) -> None:
        """Take a batch and wait until its queue has accepted it."""
        accepted = self._accepted[id(batch)] = asyncio.get_running_loop().create_future()
        try:
            self.send(batch, None)
            await accepted
        finally:
            self._accepted.pop(id(batch), None)

    async def flush(self) -> None:
        """Wait until everything submitted so far was accepted."""
        self._wake()
        while self._error is None and not self._is_idle():
            idle = asyncio.get_running_loop().create_future()
            self._idle.append(idle)
            await idle

    @property
    def buffered(self) -> bool:
        """Whether something was not accepted yet."""
        return not self._is_idle()

    def _is_idle(self) -> bool:
        return not self._calls and not self._batches and all(stream.idle for stream in self._streams)

    def _wake(self) -> None:
        """Make batches of what is buffered, and send what the window lets through."""
        if self._error is not None:
            return
        in_flight = sum(stream.in_flight for stream in self._streams)
        with self._lock:
            batches, self._batches = self._batches, deque()
            ready = [(self._calls_before(batch.first), batch, of, shift) for batch, of, shift in batches]
            calls: deque[Call] = deque()
            if len(self._calls) >= self._batch_calls or in_flight < COALESCE_PUTS:
                calls, self._calls = self._calls, calls
            self._woken = bool(self._calls)  # what stays leaves with the next answer
        for before, batch, of, shift in ready:
            self._offer_calls(before)
            self._streams[self._balancer.pick()].offer(batch, of, shift)
        self._offer_calls(calls)
        for index in range(len(self._streams)):
            self.kick(index)

    def _calls_before(self, number: int) -> deque[Call]:
        """Called with the lock held: takes the calls that were submitted before task `number`, to keep their order."""
        before: deque[Call] = deque()
        while self._calls and self._calls[0].future.number < number:
            before.append(self._calls.popleft())
        return before

    def _offer_calls(self, calls: deque[Call]) -> None:
        while calls:
            batch, sink, queue = gather(calls, self._session.id, self._batch_calls, len(self._streams))
            self._streams[self._balancer.pick() if queue is None else queue].offer(batch, sink)

    def kick(self, index: int) -> None:
        """Send what the window of queue `index` lets through."""
        stream = self._streams[index]
        while (put := stream.next_put()) is not None:
            self._session.spawn(self._put(index, stream.uuid, put))

    async def _put(self, index: int, uuid: str, put: PutRequest) -> None:
        """What a queue refuses ends with its put; any other end of this is that of the pool, or the put would hang."""
        try:
            await self._put_until_answered(index, uuid, put)
        except (PoolGone, SchedulerGone) as error:
            self._owner.over(error)
        except Exception as error:
            logger.exception("pool %s cannot put into its queue %d, and is over", self._route.pool, index)
            self._owner.over(error)

    async def _put_until_answered(self, index: int, uuid: str, put: PutRequest) -> None:
        stream, trials = self._streams[index], Trials(f"a put into queue {index} of pool {self._route.pool}")
        while stream.awaits(put):  # else it was refused with one before it
            first = stream.is_first(put)
            refusal: Exception | None = None
            try:
                answer, outcomes = await self._admit(index, uuid, put, first=not trials.failed)
            except QueueReplaced:
                await self._owner.replaced(index)
                return
            except (PoolGone, SchedulerGone):
                raise
            except Exception as error:
                if isinstance(error, RemoteFailure) and error.kind == DiskFullError.__name__:
                    if self._wait_for_room_s:
                        logger.warning("%s: it is put again until there is room", error)
                        await asyncio.sleep(DISK_AGAIN_S)
                    else:
                        refusal = storage_error(error.kind, str(error), "")
                elif not await trials.again(error):
                    refusal = error
            else:
                if not isinstance(answer, (Full, Early)):
                    self._answered(index, put, answer, outcomes)
                    return
                if isinstance(answer, Full):
                    if self._wait_for_room_s:
                        await asyncio.sleep(FULL_AGAIN_S)
                    else:
                        refusal = QueueFull(f"queue {index} of pool {self._route.pool!r} is full")
            if refusal is not None:
                if first:
                    self._refuse(index, put, refusal)
                    return
                await self._await_first(stream, put)  # perhaps it was refused only for one before it

    async def _await_first(self, stream: ProducerStream, put: PutRequest) -> None:
        """Wait until the puts before `put` are answered, or it is put otherwise."""
        while self._error is None and stream.awaits(put) and not stream.is_first(put):
            await self.answered()

    def _answered(self, index: int, put: PutRequest, answer: PutAnswer, outcomes: Outcomes | None) -> None:
        stream = self._streams[index]
        if isinstance(answer, Accepted):
            if stream.accepted(put):
                self._done(put)
                if outcomes is not None:
                    self._owner.deliver(index, outcomes)
        else:
            stream.unknown(put)
        self.go_on()

    async def _admit(self, index: int, uuid: str, put: PutRequest, *, first: bool) -> tuple[PutAnswer, Outcomes | None]:
        """Send a put, which is answered a little later if nothing else is awaited: then its outcomes may come along.

        Not in a task, whose end would wait for that answer, and only the first time.
        """
        terms: dict[str, Any] = {
            "uuid": uuid,
            "batches": put.batches,
            "producer": put.producer,
            "number": put.number,
            "wait": self._wait_for_room_s,
        }
        stream = self._streams[index]
        if not first or not stream.is_alone(put) or nested.is_registered(self._owner):
            return await self._link.call(self._route, index, "admit", **terms), None
        hear: dict[str, Any] = {"client": self._session.id, "cursor": stream.cursor}
        answer: tuple[PutAnswer, Outcomes | None]
        answer = await self._link.call(self._route, index, "admit_alone", **hear, **terms)
        return answer

    def go_on(self) -> None:
        """Something was answered or lost: send what may follow, and tell who waits for everything to be accepted."""
        self._wake()
        if self._idle and self._is_idle():
            _release(self._idle)
        _release(self._answers)

    async def answered(self) -> None:
        """Wait until a put that is under way is answered, or something else has changed."""
        if self._error is None:
            answer = asyncio.get_running_loop().create_future()
            self._answers.append(answer)
            await answer

    def _refuse(self, index: int, put: PutRequest, error: Exception) -> None:
        """The queue or its disk is full, and whoever submitted asked to hear of it; or it cannot be put at all."""
        refused = self._streams[index].refused(put)
        for lost in refused:
            if lost.sink is not None:
                for lo, hi in lost.runs:
                    lost.sink.lose(lost.shift + lo, lost.shift + hi, error)
        if refused:
            self._done(put, error)
        self.go_on()

    def _done(self, put: PutRequest, error: BaseException | None = None) -> None:
        """`put` is not buffered any more: it was accepted, or refused with `error`."""
        count = nbytes = 0
        for batch in put.batches:
            count += batch.count
            nbytes += len(batch.body)
            waiting = self._accepted.get(id(batch))
            if waiting is not None and not waiting.done():
                if error is None:
                    waiting.set_result(None)
                else:
                    waiting.set_exception(error)
        with self._lock:
            self._buffered -= count
            self._buffered_bytes -= nbytes
            self._room.notify_all()
        self._release_capacity()

    def _release_capacity(self) -> None:
        if self._capacity and not self._is_full():
            _release(self._capacity)

    async def wait_capacity(self) -> None:
        """Wait until the buffer has room."""
        while self._error is None and self._is_full():
            room = asyncio.get_running_loop().create_future()
            self._capacity.append(room)
            await room

    def _is_full(self) -> bool:
        if self._maxsize and self._buffered >= self._maxsize:
            return True
        return self._buffered_bytes > BUFFER_BYTES or len(self._calls) >= BUFFER_CALLS

    def recount(self) -> None:
        """Something left the streams without being accepted, or came back to them: count anew what is buffered."""
        with self._lock:
            self._buffered = len(self._calls) + sum(batch.count for batch, _, _ in self._batches)
            self._buffered += sum(stream.unaccepted for stream in self._streams)
            self._buffered_bytes = sum(len(call.body) for call in self._calls)
            self._buffered_bytes += sum(len(batch.body) for batch, _, _ in self._batches)
            self._buffered_bytes += sum(stream.unaccepted_bytes for stream in self._streams)
            self._room.notify_all()
        self._release_capacity()

    def offer(self) -> None:
        """Hand what was submitted to the streams."""
        self._wake()

    def take_back(self, sink: Sink | None) -> int:
        """Cancel what of a sink (None: of any) is still in the buffer; how many messages that were."""
        calls: deque[Call] = deque()
        batches: list[tuple[Batch, Sink, int]] = []
        with self._lock:
            if sink is None:
                calls, self._calls = self._calls, calls
            for _ in range(len(self._batches)):
                batch, of, shift = self._batches.popleft()
                if of is not None and (sink is None or sink is of):
                    batches.append((batch, of, shift))
                else:
                    self._batches.append((batch, of, shift))
        for call in calls:
            FutureSink([call.future]).lose(0, 1, CancelledError())
        for batch, of, shift in batches:
            of.lose(shift, shift + batch.count, CancelledError())
        if calls or batches:
            self.taken_back()
        return len(calls) + sum(batch.count for batch, _, _ in batches)

    def taken_back(self) -> None:
        """The streams have less to send."""
        self.recount()
        self.go_on()

    def withdraw(self, future: TaskFuture) -> bool:
        """Take a call back that is still in the buffer. False: it is not there any more."""
        self._session.check_here()
        with self._lock:
            for call in self._calls:
                if call.future is future:
                    break
            else:
                return False
            self._calls.remove(call)
            self._withdrawn(call)
        FutureSink([future]).lose(0, 1, CancelledError())
        return True

    def withdraw_numbers(self, numbers: Container[int]) -> set[int]:
        """Take the calls back that have these numbers and are still in the buffer; returns which were."""
        withdrawn: list[TaskFuture] = []
        with self._lock:
            for _ in range(len(self._calls)):
                call = self._calls.popleft()
                if call.future.number in numbers:
                    self._withdrawn(call)
                    withdrawn.append(call.future)
                else:
                    self._calls.append(call)
        for future in withdrawn:
            FutureSink([future]).lose(0, 1, CancelledError())
        return {future.number for future in withdrawn}

    def _withdrawn(self, call: Call) -> None:
        """Called with the lock held; nothing will come of it."""
        self._buffered -= 1
        self._buffered_bytes -= len(call.body)
        self._room.notify_all()

    def refuse(self, error: BaseException) -> None:
        """Whoever submits from now on gets `error`."""
        self._session.check_here()
        with self._lock:
            self._refusal = error
            self._room.notify_all()

    def close(self, error: BaseException, outcome: BaseException) -> None:
        """Whoever submits from now on gets `error`; what was not offered yet ends with `outcome`."""
        with self._lock:
            self._error = self._refusal = error
            calls, self._calls = self._calls, deque()
            batches, self._batches = self._batches, deque()
            self._room.notify_all()
        for waiting in self._accepted.values():
            if not waiting.done():
                waiting.set_exception(error)
        for waiting_list in (self._idle, self._answers, self._capacity):
            _release(waiting_list)
        for call in calls:
            FutureSink([call.future]).lose(0, 1, outcome)
        for batch, sink, shift in batches:
            if sink is not None:
                sink.lose(shift, shift + batch.count, outcome)


def _release(waiting: list[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)
    waiting.clear()
