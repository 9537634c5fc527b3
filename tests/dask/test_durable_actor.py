"""DurableActor: nothing is missed, lost or told too early while operations are in threads.

The interleavings are forced: a call is held in its thread until the test lets it go.
"""

import asyncio
import errno
import gc
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from daskqueue.worker import durable_actor
from daskqueue.worker.durable_actor import DurableActor, QueueOver
from daskqueue.worker.hosted_queue import HostedQueue
from daskqueue_core.batch import Batch, Keep
from daskqueue_core.outcomes import Report
from daskqueue_core.queue import Accepted, Demand, Full, Lease
from daskqueue_core.states import MessageState
from daskqueue_storage.errors import DiskFullError, FencedError, WriterFailedError
from daskqueue_storage.files import OsFiles

T = TypeVar("T")
LONG = 60.0  # seconds nobody waits: what is awaited comes, or LIMIT ends the test
LIMIT = 30.0
MS = 10**6
ITEMS = Demand(1, kinds=(0,))


class Held:
    """Holds the next call of `of.name` in its thread, before it or `after` it, until `go`."""

    def __init__(self, of: Any, name: str, *, after: bool = False) -> None:
        self._came, self._go = threading.Event(), threading.Event()
        method = getattr(of, name)

        def held(*args: Any, **kwargs: Any) -> Any:
            delattr(of, name)
            value = method(*args, **kwargs) if after else None
            self._came.set()
            assert self._go.wait(LIMIT)
            return value if after else method(*args, **kwargs)

        setattr(of, name, held)

    async def came(self) -> None:
        """It is being held."""
        assert await asyncio.to_thread(self._came.wait, LIMIT)

    @property
    def has_come(self) -> bool:
        """Whether it is or was held."""
        return self._came.is_set()

    def go(self) -> None:
        """Let it go on."""
        self._go.set()


class Disk(OsFiles):
    """The real one; it can be full or fail, and its next sync be held."""

    full = False
    broken = False

    def append(self, handle: int, buffers: Sequence[bytes], offset: int) -> int:
        """Refused while the disk is full."""
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().append(handle, buffers, offset)

    def sync(self, handle: int) -> None:
        """Fails while the disk is broken."""
        self.before_sync()
        if self.broken:
            raise OSError(errno.EIO, "Input/output error")
        super().sync(handle)

    def before_sync(self) -> None:
        """To be held."""


Test = Callable[[DurableActor], Coroutine[Any, Any, None]]
Run = Callable[..., None]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a test with an actor over a queue in a directory, and closes it. No error may go unheard.

    The timer does not come round by itself: it would make good for what is missed.
    """
    monkeypatch.setattr(durable_actor, "HEARTBEAT_S", LONG)

    def main(
        test: Test, *, sync: str = "none", files: Any = None, over: list[Exception] | None = None, **options: Any
    ) -> None:
        async def body() -> None:
            unheard: list[Any] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
            queue = HostedQueue(tmp_path / "queue", sync=sync, files=files, **options)
            actor = DurableActor(queue, on_over=None if over is None else over.append)
            try:
                await asyncio.wait_for(test(actor), LIMIT)
            finally:
                await actor.close()
            gc.collect()
            await asyncio.sleep(0)
            assert unheard == []

        asyncio.run(body())

    return main


def calls(first: int, count: int = 1) -> list[Batch]:
    """A batch of calls of client 1."""
    return [Batch(count, b"block", client=1, first=first, keep=Keep.STREAM)]


async def parked(actor: DurableActor, call: Awaitable[T]) -> "asyncio.Future[T]":
    """A lease call that waits for something to be ready."""
    before = len(actor._parked)
    task = asyncio.ensure_future(call)
    await until(lambda: len(actor._parked) > before or task.done())
    assert not task.done()
    return task


async def until(condition: Callable[[], bool]) -> None:
    """It holds, after a few turns of the event loop."""
    while not condition():  # noqa: ASYNC110  # not a moment later
        await asyncio.sleep(0)


async def settled(actor: DurableActor) -> None:
    """Everything that was under way has had time to come to where it waits."""
    for _ in range(5):
        await actor.stats()


# -- nothing is missed


def test_an_outcome_that_comes_between_a_polls_answer_and_its_waiting(run: Run) -> None:
    """It was looked at later than the answer, and heard of earlier."""

    async def test(actor: DurableActor) -> None:
        await actor.admit(calls(0))
        lease = await actor.lease(1)
        assert lease is not None
        held = Held(actor, "_look", after=True)
        poll = asyncio.ensure_future(actor.poll(1, wait=LONG))
        await held.came()
        await actor.ack(lease)
        held.go()
        assert len((await poll).outcomes) == 1

    run(test)


def test_an_outcome_that_comes_while_a_poll_waits(run: Run) -> None:
    """Its client is woken, and nobody else."""

    async def test(actor: DurableActor) -> None:
        await actor.admit(calls(0))
        lease = await actor.lease(1)
        assert lease is not None
        mine, other = (asyncio.ensure_future(actor.poll(client, wait=LONG)) for client in (1, 2))
        await settled(actor)
        await actor.ack(lease)
        assert len((await mine).outcomes) == 1
        await settled(actor)
        assert not other.done()
        other.cancel()
        await asyncio.wait([other])
        assert not actor._watching

    run(test)


def test_a_put_that_comes_between_a_leases_answer_and_its_waiting(run: Run) -> None:
    """It is granted at once."""

    async def test(actor: DurableActor) -> None:
        held = Held(actor, "_look", after=True)
        lease = asyncio.ensure_future(actor.lease(1, wait=LONG))
        await held.came()
        await actor.put(b"a")
        held.go()
        assert await lease is not None

    run(test)


def test_a_put_that_comes_while_a_waiting_lease_is_tried(run: Run) -> None:
    """It is tried once more."""

    async def test(actor: DurableActor) -> None:
        await actor.admit([Batch(1, b"", kind=1)])  # makes something ready that the lease cannot use
        held = Held(actor, "_look", after=True)
        lease = asyncio.ensure_future(actor.lease(1, demand=ITEMS, wait=LONG))
        await held.came()
        again = Held(actor.queue, "lease", after=True)
        held.go()
        await again.came()
        await actor.put(b"item")
        again.go()
        assert await lease is not None

    run(test)


def test_an_early_put_whose_predecessor_comes_while_it_is_answered(run: Run) -> None:
    """It asks once more before it waits for its turn."""

    async def test(actor: DurableActor) -> None:
        await actor.admit(calls(0), producer=7, number=0)
        held = Held(actor, "_look", after=True)
        early = asyncio.ensure_future(actor.admit(calls(2), producer=7, number=2))
        await held.came()
        assert await actor.admit(calls(1), producer=7, number=1) == Accepted(1, 1)
        held.go()
        assert await early == Accepted(2, 1)

    run(test)


def test_an_early_put_whose_predecessor_comes_while_it_asks_again(run: Run) -> None:
    """Its turn comes while it is not waiting yet."""

    async def test(actor: DurableActor) -> None:
        await actor.admit(calls(0), producer=7, number=0)
        held = Held(actor, "_look", after=True)
        early = asyncio.ensure_future(actor.admit(calls(2), producer=7, number=2))
        await held.came()
        again = Held(actor, "_look", after=True)
        held.go()
        await again.came()
        assert await actor.admit(calls(1), producer=7, number=1) == Accepted(1, 1)
        again.go()
        assert await early == Accepted(2, 1)

    run(test)


def test_an_early_put_that_comes_twice_and_whose_first_caller_is_gone(run: Run) -> None:
    """The other goes on waiting for its turn."""

    async def test(actor: DurableActor) -> None:
        await actor.admit(calls(0), producer=7, number=0)
        first, second = (asyncio.ensure_future(actor.admit(calls(2), producer=7, number=2)) for _ in range(2))
        await settled(actor)
        first.cancel()
        await asyncio.wait([first])
        assert await actor.admit(calls(1), producer=7, number=1) == Accepted(1, 1)
        assert await second == Accepted(2, 1)
        assert not actor._puts.are_early

    run(test)


@pytest.mark.parametrize("nth", [0, 1])
def test_room_that_comes_while_a_put_is_refused(run: Run, nth: int) -> None:
    """Between the answer and its place in the line, or between asking from there and waiting."""

    async def test(actor: DurableActor) -> None:
        await actor.put(b"a")
        lease = await actor.lease(1)
        assert lease is not None
        held = Held(actor, "_look", after=True)
        put = asyncio.ensure_future(actor.admit(calls(0), wait=LONG))
        await held.came()
        if nth:
            again = Held(actor, "_look", after=True)
            held.go()
            held = again
            await held.came()
        await actor.ack(lease)
        held.go()
        assert await put == Accepted(1, 1)

    run(test, maxsize=1)


def test_a_put_that_waits_for_room_does_not_ask_without_end(run: Run) -> None:
    """That it asked itself is no reason to ask again."""

    async def test(actor: DurableActor) -> None:
        await actor.put(b"a")
        asked = 0
        admit = actor.queue.admit

        def count(*args: Any, **kwargs: Any) -> Any:
            nonlocal asked
            asked += 1
            return admit(*args, **kwargs)

        actor.queue.admit = count  # type: ignore[method-assign]
        put = asyncio.ensure_future(actor.admit(calls(0), wait=LONG))
        await settled(actor)
        await settled(actor)
        assert asked == 2
        await actor.purge(MessageState.READY)
        assert await put == Accepted(1, 1)

    run(test, maxsize=1)


def test_a_join_goes_by_the_newest_glance(run: Run) -> None:
    """One that is older and heard later says nothing any more."""

    async def test(actor: DurableActor) -> None:
        await actor.put(b"a")
        lease = await actor.lease(1)
        assert lease is not None
        held = Held(actor, "_look", after=True)
        ack = asyncio.ensure_future(actor.ack(lease))
        await held.came()
        assert not (await actor.join()).idle  # nobody was told yet
        await actor.put(b"b")
        held.go()
        assert await ack == 1
        assert await actor.join() == (actor.queue.uuid, 2, 1, False)
        join = asyncio.ensure_future(actor.join(LONG))
        await actor.purge(MessageState.READY)
        assert (await join).idle

    run(test)


def test_is_left_alone_goes_by_what_was_seen(run: Run) -> None:
    """Something is ready, and nobody else holds anything."""

    async def test(actor: DurableActor) -> None:
        assert not actor.is_left_alone("me")
        await actor.put_block(b"", 2)
        assert actor.is_left_alone("me")
        assert await actor.lease(1, owner="other") is not None
        actor._asked_at.clear()  # as if that was long ago
        assert not actor.is_left_alone("me")

    run(test)


# -- grants


def test_a_lease_that_nothing_fits_is_not_tried_without_end(run: Run) -> None:
    """What is ready is for others: it is tried when something happened."""

    async def test(actor: DurableActor) -> None:
        await actor.admit([Batch(1, b"", kind=1)])
        waiting = await parked(actor, actor.lease(1, demand=ITEMS, wait=LONG))
        while actor._granting is not None:
            await actor._granting
        assert not waiting.done()
        await actor.put(b"item")
        assert await waiting is not None

    run(test)


def test_waiting_leases_are_granted_in_order(run: Run) -> None:
    """Each with what it can get, one at a time."""

    async def test(actor: DurableActor) -> None:
        waiting = [await parked(actor, actor.lease(1, owner=name, wait=LONG)) for name in "abc"]
        await asyncio.gather(*[actor.put(b"x") for _ in range(3)])
        assert [lease.ids for lease in await asyncio.gather(*waiting) if lease is not None] == [[0], [1], [2]]

    run(test)


@pytest.mark.parametrize("how", ["cancelled", "timeout", "corpse"])
def test_a_caller_that_goes_while_it_is_granted_something(run: Run, how: str) -> None:
    """The lease goes back at once, and the next gets it."""

    async def test(actor: DurableActor) -> None:
        living = True
        first = await parked(actor, actor.lease(1, owner="a", request=1, alive=lambda: living, wait=LONG))
        second = await parked(actor, actor.lease(1, owner="b", request=1, wait=LONG))
        held = Held(actor.queue, "lease", after=True)
        await actor.put(b"a")
        await held.came()
        if how == "cancelled":
            first.cancel()
            await asyncio.wait([first])
        elif how == "timeout":
            actor._parked[0].answer.set_result(None)  # as its timer does
            assert await first is None
        else:
            living = False
        held.go()
        lease = await second
        assert lease is not None
        assert lease.ids == [0]
        if how == "corpse":
            assert await first is None

    run(test)


@pytest.mark.parametrize("how", ["cancelled", "corpse"])
def test_a_caller_that_goes_while_it_leases(run: Run, how: str) -> None:
    """The same for one that had not to wait."""

    async def test(actor: DurableActor) -> None:
        living = True
        await actor.put(b"a")
        held = Held(actor.queue, "lease", after=True)
        first = asyncio.ensure_future(actor.lease(1, owner="a", request=1, alive=lambda: living))
        await held.came()
        second = await parked(actor, actor.lease(1, owner="b", wait=LONG))
        if how == "cancelled":
            first.cancel()
            await asyncio.wait([first])
        else:
            living = False
        held.go()
        lease = await second
        assert lease is not None
        assert lease.ids == [0]
        if how == "corpse":
            assert await first is None

    run(test)


def test_a_caller_that_goes_just_when_it_was_granted_something(run: Run) -> None:
    """It was answered, and did not hear it."""

    async def test(actor: DurableActor) -> None:
        first = await parked(actor, actor.lease(1, wait=LONG))
        asked = actor._parked[0]
        put = asyncio.ensure_future(actor.put(b"a"))
        await until(asked.answer.done)
        first.cancel()
        await put
        await asyncio.wait([first])
        assert first.cancelled()
        assert await actor.lease(1, wait=LONG) is not None

    run(test)


def test_a_request_that_came_again_keeps_its_grant(run: Run) -> None:
    """Its first caller is gone, but the second has the same lease."""

    async def test(actor: DurableActor) -> None:
        await actor.put(b"a")
        held = Held(actor.queue, "lease", after=True)
        first = asyncio.ensure_future(actor.lease(1, owner="a", request=5))
        await held.came()
        lease = await actor.lease(1, owner="a", request=5)
        assert lease is not None
        first.cancel()
        held.go()
        await settled(actor)
        assert (await actor.stats()).delivered == 1
        assert await actor.ack(lease) == 1

    run(test)


def test_an_error_of_a_grant_is_its_callers(run: Run) -> None:
    """Who put hears nothing of it, and the next gets the message."""

    async def test(actor: DurableActor) -> None:
        first = await parked(actor, actor.lease(1, owner="a", wait=LONG))
        second = await parked(actor, actor.lease(1, owner="b", wait=LONG))

        def fail(*_: Any, **__: Any) -> Any:
            del actor.queue.lease
            raise MemoryError("once")

        actor.queue.lease = fail  # type: ignore[method-assign]
        await actor.put(b"a")
        with pytest.raises(MemoryError):
            await first
        assert await second is not None

    run(test)


# -- threads


def test_the_event_loop_never_takes_the_queues_turn(run: Run) -> None:
    """Whatever is asked, whoever waits, and when time passes."""

    async def test(actor: DurableActor) -> None:
        me = threading.get_ident()
        taken: list[int] = []

        class NotingLock:
            def __init__(self) -> None:
                self.lock = threading.RLock()
                self.release = self.lock.release

            def acquire(self) -> None:
                taken.append(threading.get_ident())
                self.lock.acquire()

        actor.queue._turn.lock = NotingLock()  # type: ignore[assignment]
        poll = asyncio.ensure_future(actor.poll(1, wait=LONG))
        lease = await parked(actor, actor.lease(1, owner="a", ttl=20 * MS, near=True, wait=LONG))
        await actor.admit(calls(0), producer=7, number=0)
        granted = await lease
        assert granted is not None
        again = await actor.lease(1, owner="b", request=1, wait=LONG)  # the first lapses
        assert again is not None
        await actor.heartbeat("b", {again.id: (0, 1)}, [], 1)
        actor.is_left_alone("b")
        await actor.settle(again.id, [Report(0, 1, b"value")])
        assert len((await poll).outcomes) == 1
        await actor.owner_lost("b")
        assert (await actor.join()).idle
        await actor.close()
        assert taken
        assert me not in taken

    run(test)


def test_puts_share_a_sync(run: Run) -> None:
    """Those of one producer too: what was recorded while one was syncing is synced together."""
    files = Disk()

    async def test(actor: DurableActor) -> None:
        await actor.admit(calls(0), producer=7, number=0)
        before = actor.queue._store.log.syncs
        held = Held(files, "before_sync")
        puts = [asyncio.ensure_future(actor.admit(calls(1), producer=7, number=1))]
        await held.came()
        puts += [asyncio.ensure_future(actor.admit(calls(n), producer=7, number=n)) for n in range(2, 8)]
        while (await actor.stats()).puts < 8:
            pass
        assert not actor._puts.are_early
        held.go()
        assert await asyncio.gather(*puts) == [Accepted(n, 1) for n in range(1, 8)]
        assert actor.queue._store.log.syncs == before + 2

    run(test, sync="batch", files=files)


def test_puts_are_recorded_in_the_order_they_came(run: Run) -> None:
    """Whichever thread is slow: none is early."""

    async def test(actor: DurableActor) -> None:
        await actor.admit(calls(0), producer=7, number=0)
        held = Held(actor.queue, "admit")
        first = asyncio.ensure_future(actor.admit(calls(1), producer=7, number=1))
        await held.came()
        second = asyncio.ensure_future(actor.admit(calls(2), producer=7, number=2))
        await settled(actor)
        assert not actor._puts.are_early
        held.go()
        assert (await first, await second) == (Accepted(1, 1), Accepted(2, 1))

    run(test)


def test_an_outcome_is_told_when_it_is_durable(run: Run) -> None:
    """Not to another caller while its report waits for the disk."""
    files = Disk()

    async def test(actor: DurableActor) -> None:
        await actor.admit(calls(0))
        lease = await actor.lease(1)
        assert lease is not None
        held = Held(files, "before_sync")
        report = asyncio.ensure_future(actor.settle(lease.id, [Report(0, 1, b"value")]))
        await held.came()
        poll = asyncio.ensure_future(actor.poll(1, wait=LONG))
        await settled(actor)
        assert not poll.done()
        held.go()
        assert await report == 1
        assert len((await poll).outcomes) == 1

    run(test, sync="batch", files=files)


def test_a_put_that_comes_again_is_accepted_when_it_is_durable(run: Run) -> None:
    """Not because it is there already."""
    files = Disk()

    async def test(actor: DurableActor) -> None:
        await actor.put(b"")  # the log's first put syncs a new file as well, in its turn
        held = Held(files, "before_sync")
        first = asyncio.ensure_future(actor.admit(calls(0), producer=7, number=0))
        await held.came()
        again, third = (asyncio.ensure_future(actor.admit(calls(0), producer=7, number=0)) for _ in range(2))
        await settled(actor)
        first.cancel()
        third.cancel()
        await settled(actor)
        assert not again.done()
        held.go()
        assert await again == Accepted(1, 1)

    run(test, sync="batch", files=files)


def test_a_put_whose_caller_is_gone_is_put(run: Run) -> None:
    """And wakes who waits for it."""

    async def test(actor: DurableActor) -> None:
        lease = await parked(actor, actor.lease(1, wait=LONG))
        held = Held(actor.queue, "put_many")
        put = asyncio.ensure_future(actor.put(b"a"))
        await held.came()
        put.cancel()
        await asyncio.wait([put])
        held.go()
        assert await lease is not None

    run(test)


def test_an_error_whose_caller_is_gone(run: Run) -> None:
    """Nobody hears it, and nobody complains."""

    async def test(actor: DurableActor) -> None:
        held = Held(actor.queue, "purge")
        purge = asyncio.ensure_future(actor.purge(MessageState.DELIVERED))  # not this state
        await held.came()
        purge.cancel()
        await asyncio.wait([purge])
        held.go()
        await settled(actor)

    run(test)


# -- time


def test_time_passes_in_one_thread_at_a_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long that takes, and whatever happens meanwhile."""
    monkeypatch.setattr(durable_actor, "HEARTBEAT_S", 0.01)

    async def test(actor: DurableActor) -> None:
        held = Held(actor.queue, "tick")  # nothing is due yet
        await actor.admit([Batch(1, b"", client=1, first=0, keep=Keep.STREAM, ready_at=time.time_ns() + 20 * MS)])
        await held.came()
        second = Held(actor.queue, "tick")
        for _ in range(20):
            await actor.stats()
            await asyncio.sleep(0.001)
        assert not second.has_come
        held.go()
        second.go()
        assert await actor.lease(1, wait=LONG) is not None

    run(test)


def test_a_delayed_message_is_granted_when_it_is_due(run: Run) -> None:
    """By a timer that was set for something later."""

    async def test(actor: DurableActor) -> None:
        await actor.put(b"a")
        assert await actor.lease(1, ttl=3600 * 10**9) is not None
        lease = await parked(actor, actor.lease(1, wait=LONG))
        begin = time.monotonic()
        await actor.admit([Batch(1, b"", client=1, first=0, keep=Keep.STREAM, ready_at=time.time_ns() + 50 * MS)])
        assert await lease is not None
        assert 0.03 < time.monotonic() - begin < 0.9

    run(test)


@pytest.mark.parametrize("what", ["loop", "disk"])
def test_a_deaf_queue_expires_nobody(run: Run, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """While the event loop is busy, or the disk holds up everything, nobody can be heard: deadlines move."""
    monkeypatch.setattr(durable_actor, "HEARTBEAT_S", 0.01)
    ahead = 0.0

    class Time:
        @staticmethod
        def monotonic() -> float:
            return time.monotonic() + ahead

    monkeypatch.setattr(durable_actor, "time", Time)

    async def test(actor: DurableActor) -> None:
        nonlocal ahead
        await actor.put(b"a")
        assert await actor.lease(1, owner="a", ttl=10**10) is not None
        deadline = await actor.next_ready_at()
        assert deadline is not None
        held = Held(actor.queue, "owners") if what == "disk" else Held(actor, "_tick")
        await held.came()
        ahead = 1000.0
        ticked = Held(actor, "_look", after=True)
        held.go()
        await ticked.came()
        ahead = 0.0
        ticked.go()
        moved = await actor.next_ready_at()
        assert moved is not None
        assert moved >= deadline + 999 * 10**9
        assert (await actor.stats()).delivered == 1

    run(test)


# -- the disk fails


def test_a_full_disk_is_its_putters_trouble(run: Run) -> None:
    """Consumers go on, what was to follow it is refused with it, and when there is room it can be put again."""
    files = Disk()

    async def test(actor: DurableActor) -> None:
        await actor.admit(calls(0), producer=7, number=0)
        early = asyncio.ensure_future(actor.admit(calls(2), producer=7, number=2))
        await settled(actor)
        files.full = True
        with pytest.raises(DiskFullError):
            await actor.admit(calls(1), producer=7, number=1)
        with pytest.raises(DiskFullError):
            await actor.put(b"")
        assert await early == Full(0)
        assert await actor.admit(calls(3), producer=7, number=3) == Full(0)
        assert (await actor.poll(1)).outcomes == ()
        files.full = False
        lease = await actor.lease(1)
        assert lease is not None
        assert await actor.ack(lease) == 1
        assert await actor.admit(calls(1), producer=7, number=1) == Accepted(1, 1)
        assert actor.over is None

    run(test, files=files)


def test_a_put_may_wait_for_the_disk(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here says when there is room: it tries again, and gives up with the error."""
    monkeypatch.setattr(durable_actor, "DISK_AGAIN_S", 0.01)
    files = Disk()

    async def test(actor: DurableActor) -> None:
        files.full = True
        with pytest.raises(DiskFullError):
            await actor.admit(calls(0), producer=7, number=0, wait=0.05)
        put = asyncio.ensure_future(actor.admit(calls(0), producer=7, number=0, wait=LONG))
        await settled(actor)
        assert not put.done()
        files.full = False
        assert await put == Accepted(0, 1)

    run(test, files=files)


def replace(actor: DurableActor) -> None:
    """Another owner takes the directory over; its lock is there, and our heartbeat finds it."""
    lease = actor.queue._store.lease
    root = Path(actor.queue._store.root)
    (root / f"lock-{lease.epoch + 1:08x}").write_bytes((root / f"lock-{lease.epoch:08x}").read_bytes())
    assert not lease.heartbeat()


@pytest.mark.parametrize("op", ["poll", "lease", "put"])
def test_a_queue_that_was_taken_over_is_over(run: Run, op: str) -> None:
    """Whoever finds out, everybody who waits hears of it, and its host once."""
    over: list[Exception] = []

    async def test(actor: DurableActor) -> None:
        await actor.put(b"a")
        assert await actor.lease(1) is not None
        waiting: list[asyncio.Future[Any]] = [await parked(actor, actor.lease(1, wait=LONG))]
        await actor.admit(calls(0), producer=7, number=0)  # for the lease
        assert await waiting.pop() is not None
        waiting.append(await parked(actor, actor.lease(1, wait=LONG)))
        waiting += [asyncio.ensure_future(actor.poll(1, wait=LONG)), asyncio.ensure_future(actor.join(LONG))]
        waiting.append(asyncio.ensure_future(actor.admit(calls(2), producer=7, number=2)))
        waiting.append(asyncio.ensure_future(actor.admit(calls(1), wait=LONG)))
        await settled(actor)
        replace(actor)
        find_out: dict[str, Callable[[], Awaitable[object]]] = {
            "poll": lambda: actor.poll(2),
            "lease": lambda: actor.lease(1),
            "put": lambda: actor.put(b""),
        }
        with pytest.raises(QueueOver):
            await find_out[op]()
        for error in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(error, QueueOver)
        with pytest.raises(QueueOver, match="replaced"):
            await actor.stats()
        assert [type(error) for error in over] == [FencedError]

    run(test, over=over, maxsize=2)


def test_a_queue_whose_sync_failed_is_over(run: Run) -> None:
    """Nobody knows what is on disk: it is opened again."""
    files, over = Disk(), list[Exception]()

    async def test(actor: DurableActor) -> None:
        waiting = await parked(actor, actor.lease(1, wait=LONG))
        files.broken = True
        both = [actor.admit(calls(n), producer=n, number=0) for n in range(2)]
        for error in await asyncio.gather(*both, waiting, return_exceptions=True):
            assert isinstance(error, QueueOver)
        assert isinstance(actor.over, WriterFailedError)
        files.broken = False

    run(test, sync="batch", files=files, over=over)
    assert len(over) == 1


def test_nobody_waits_for_ever_if_the_host_fails(run: Run) -> None:
    """What is called when the queue is over raises: who waits is answered, and the event loop hears of it."""
    unheard: list[Any] = []

    async def test(actor: DurableActor) -> None:
        def fail(_: Exception) -> None:
            raise LookupError("the host")

        actor._on_over = fail
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context["exception"]))
        replace(actor)
        with pytest.raises(FencedError):
            await actor.stats()
        assert [str(error) for error in unheard] == ["the host"]

    run(test)


# -- the end


def test_close_lets_everybody_go(run: Run) -> None:
    """Who waits is answered with nothing, and later calls are refused."""
    over: list[Exception] = []

    async def test(actor: DurableActor) -> None:
        await actor.put(b"a")
        await actor.lease(1)
        lease = await parked(actor, actor.lease(1, wait=LONG))
        poll, join = asyncio.ensure_future(actor.poll(1, wait=LONG)), asyncio.ensure_future(actor.join(LONG))
        room = asyncio.ensure_future(actor.admit(calls(0), wait=LONG))
        await settled(actor)
        await asyncio.gather(actor.close(), actor.close())
        assert await lease is None
        assert (await poll).outcomes == ()
        assert not (await join).idle
        assert await room == Full(0)
        with pytest.raises(QueueOver, match="closed"):
            await actor.put(b"")

    run(test, over=over, maxsize=1)
    assert over == []


def test_close_while_a_put_is_refused(run: Run) -> None:
    """It has not come to its place in the line yet: it is answered like those that wait there."""

    async def test(actor: DurableActor) -> None:
        await actor.put(b"a")
        held = Held(actor, "_look", after=True)
        put = asyncio.ensure_future(actor.admit(calls(0), producer=5, wait=LONG))
        await held.came()
        close = asyncio.ensure_future(actor.close())
        await asyncio.sleep(0)
        held.go()
        assert await put == Full(0)
        await close

    run(test, maxsize=1)


def test_close_waits_for_what_runs(run: Run, tmp_path: Path) -> None:
    """A put that was begun is put and answered; then the queue is closed, whoever asked for that."""

    async def test(actor: DurableActor) -> None:
        held = Held(actor.queue, "put_many")
        put = asyncio.ensure_future(actor.put(b"a"))
        await held.came()
        close = asyncio.ensure_future(actor.close())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not close.done()
        close.cancel()
        await asyncio.wait([close])
        held.go()
        assert await put == 0
        await actor.close()
        assert actor.queue.report is not None
        threads = actor._threads._threads
        assert threads
        assert all(thread.daemon for thread in threads)
        for thread in threads:
            await asyncio.to_thread(thread.join, LIMIT)
        assert not any(thread.is_alive() for thread in threads)

    run(test)
    with HostedQueue(tmp_path / "queue") as queue:
        assert queue.report.clean
        assert queue.ready == 1


def test_close_takes_back_what_is_being_granted(run: Run, tmp_path: Path) -> None:
    """Its caller was let go: the message is ready when the queue is opened again, though its owner lives."""

    async def test(actor: DurableActor) -> None:
        lease: asyncio.Future[Lease | None] = await parked(actor, actor.lease(1, owner="a", request=1, wait=LONG))
        held = Held(actor.queue, "lease", after=True)
        await actor.put(b"a")
        await held.came()
        close = asyncio.ensure_future(actor.close())
        assert await lease is None
        held.go()
        await close

    run(test)
    with HostedQueue(tmp_path / "queue", owners=["a"]) as queue:
        assert queue.ready == 1
