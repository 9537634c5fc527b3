"""QueueActor: who waits, and who is woken. What it promises as a queue is in tests/conformance."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import pytest

from daskqueue.worker import puts, queue_actor
from daskqueue.worker.queue_actor import ABSENT_S, QueueActor
from daskqueue_core.batch import Batch, Keep
from daskqueue_core.ledger import Early
from daskqueue_core.outcomes import Cursor, Outcomes, Report
from daskqueue_core.queue import Accepted, Demand, PutAnswer

T = TypeVar("T")
LONG = 60.0  # seconds nobody waits: what is awaited comes, or the test's time limit ends it
MS = 10**6


def run(test: Callable[[QueueActor], Coroutine[Any, Any, T]]) -> T:
    """Run `test` with an actor, and close it."""

    async def main() -> T:
        actor = QueueActor()
        try:
            return await test(actor)
        finally:
            await actor.close()

    return asyncio.run(main())


async def started(call: Awaitable[T]) -> "asyncio.Future[T]":
    """`call` as a task that has come to where it waits."""
    task = asyncio.ensure_future(call)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not task.done()
    return task


def calls(first: int, count: int = 1) -> list[Batch]:
    """A batch of calls of client 1."""
    return [Batch(count, b"block", client=1, first=first, keep=Keep.STREAM)]


def test_early_puts_wait_for_their_turn() -> None:
    """Puts 2 and 3 overtook put 1: admitted in order as soon as it comes."""

    async def test(actor: QueueActor) -> None:
        await actor.admit(calls(0), producer=7, number=0)
        third = await started(actor.admit(calls(3), producer=7, number=3))
        second = await started(actor.admit(calls(2), producer=7, number=2))
        assert await actor.admit(calls(1), producer=7, number=1) == Accepted(1, 1)
        assert (await second, await third) == (Accepted(2, 1), Accepted(3, 1))

    run(test)


def test_an_early_put_that_comes_twice() -> None:
    """Its caller repeated it while it waited: both get the one answer."""

    async def test(actor: QueueActor) -> None:
        await actor.admit(calls(0), producer=7, number=0)
        both = [await started(actor.admit(calls(2), producer=7, number=2)) for _ in range(2)]
        await actor.admit(calls(1), producer=7, number=1)
        assert await asyncio.gather(*both) == [Accepted(2, 1)] * 2
        assert (await actor.stats()).puts == 3

    run(test)


def test_an_early_put_whose_predecessor_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while it is told so, and the queue is not busy with it any more."""
    monkeypatch.setattr(puts, "EARLY_WAIT_S", 0.01)

    async def test(actor: QueueActor) -> None:
        await actor.admit(calls(0), producer=7, number=0)
        lease = await actor.lease(1)
        assert lease is not None
        await actor.ack(lease)
        assert isinstance(await actor.admit(calls(2), producer=7, number=2), Early)
        assert (await actor.join()).idle

    run(test)


def test_an_early_put_whose_caller_is_gone() -> None:
    """A cancelled caller leaves nothing behind that keeps the queue from being idle."""

    async def test(actor: QueueActor) -> None:
        await actor.admit(calls(0), producer=7, number=0)
        lease = await actor.lease(1)
        assert lease is not None
        await actor.ack(lease)
        early = await started(actor.admit(calls(2), producer=7, number=2))
        assert not (await actor.join()).idle
        early.cancel()
        await asyncio.wait([early])
        assert (await actor.join()).idle

    run(test)


def test_a_lease_waits_for_a_put() -> None:
    """Whoever asked first is served first, each with what it can get."""

    async def test(actor: QueueActor) -> None:
        first = await started(actor.lease(2, owner="a", wait=LONG))
        second = await started(actor.lease(2, owner="b", wait=LONG))
        await actor.put_block(b"block", 3)
        leases = await asyncio.gather(first, second)
        assert [lease.ids for lease in leases if lease is not None] == [[0, 1], [2]]

    run(test)


def test_one_put_wakes_one_consumer() -> None:
    """The others go on waiting."""

    async def test(actor: QueueActor) -> None:
        first = await started(actor.lease(1, wait=LONG))
        second = await started(actor.lease(1, wait=LONG))
        await actor.put(b"a")
        assert await first is not None
        assert not second.done()
        await actor.put(b"b")
        assert await second is not None

    run(test)


def test_a_consumer_that_cannot_use_it_does_not_block_others() -> None:
    """It keeps its place for what it can use."""

    async def test(actor: QueueActor) -> None:
        items = await started(actor.lease(1, demand=Demand(1, kinds=(0,)), wait=LONG))
        anything = await started(actor.lease(1, wait=LONG))
        await actor.admit([Batch(1, b"call", kind=1)])
        assert await anything is not None
        assert not items.done()
        await actor.put(b"item")
        assert await items is not None

    run(test)


def test_a_lease_waits_so_long() -> None:
    """Then it is answered with nothing, and nothing is granted to it afterwards."""

    async def test(actor: QueueActor) -> None:
        assert await actor.lease(1, wait=0.01) is None
        await actor.put(b"a")
        assert (await actor.stats()).ready == 1

    run(test)


def test_a_corpse_gets_nothing() -> None:
    """Who cannot be answered any more is not granted what others could run."""

    async def test(actor: QueueActor) -> None:
        living = True
        parked = await started(actor.lease(1, alive=lambda: living, wait=LONG))
        living = False
        other = await started(actor.lease(1, wait=LONG))
        await actor.put(b"a")
        assert await other is not None
        assert await parked is None
        await actor.put(b"b")
        assert await actor.lease(1, alive=lambda: False) is None

    run(test)


def test_a_cancelled_lease_gets_nothing() -> None:
    """Its place goes to the next."""

    async def test(actor: QueueActor) -> None:
        first = await started(actor.lease(1, wait=LONG))
        second = await started(actor.lease(1, wait=LONG))
        first.cancel()
        await asyncio.wait([first])
        await actor.put(b"a")
        assert await second is not None

    run(test)


@pytest.mark.parametrize("how", ["release", "owner_lost", "heartbeat", "lapse"])
def test_what_goes_back_is_granted(how: str) -> None:
    """A waiting consumer gets it, whichever way it came back."""

    async def test(actor: QueueActor) -> None:
        await actor.put(b"a")
        ttl = 20 * MS if how == "lapse" else 10**12
        lease = await actor.lease(1, owner="a", request=1, ttl=ttl)
        assert lease is not None
        waiting = asyncio.ensure_future(actor.lease(1, owner="b", wait=LONG))
        if how != "lapse":  # which may come to pass before anything else does
            await asyncio.sleep(0)
            assert not waiting.done()
        if how == "release":
            await actor.release(lease)
        elif how == "owner_lost":
            await actor.owner_lost("a")
        elif how == "heartbeat":
            await actor.heartbeat("a", {}, [], 1)
        if how != "lapse":  # at once, not when the timer comes round
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert waiting.done()
        granted = await waiting
        assert granted is not None
        assert granted.ids == [0]

    run(test)


def test_a_poll_waits_for_news() -> None:
    """It is answered when there is some, and not by that of others."""

    async def test(actor: QueueActor) -> None:
        await actor.admit(calls(0, 2))
        await actor.admit([Batch(1, b"", client=2, keep=Keep.STREAM)])
        lease = await actor.lease(3)
        assert lease is not None
        poll = await started(actor.poll(1, wait=LONG))
        await actor.ack(lease, [2])
        await asyncio.sleep(0)
        assert not poll.done()
        await actor.ack(lease, [1])
        [outcome] = (await poll).outcomes
        assert (outcome.first, outcome.index, outcome.count) == (0, 1, 1)

    run(test)


def test_a_poll_waits_so_long() -> None:
    """Then it is answered with nothing."""

    async def test(actor: QueueActor) -> None:
        assert (await actor.poll(1, wait=0.01)).outcomes == ()

    run(test)


def test_a_newer_poll_replaces_an_older() -> None:
    """A client has one; the older is answered with nothing."""

    async def test(actor: QueueActor) -> None:
        older = await started(actor.poll(1, wait=LONG))
        newer = await started(actor.poll(1, wait=LONG))
        assert (await older).outcomes == ()
        await actor.admit(calls(0))
        await actor.cancel([(0, 1)])
        assert len((await newer).outcomes) == 1

    run(test)


async def ran_alone(
    actor: QueueActor, number: int, cursor: Cursor | None = None, values: bytes = b"values"
) -> tuple[PutAnswer, Outcomes | None]:
    """Put one call of client 1, lease it and report `values`: the answer to the put."""
    put = await started(actor.admit_alone(calls(number), client=1, cursor=cursor, producer=7, number=number, wait=LONG))
    lease = await actor.lease(1)
    assert lease is not None
    [seq] = lease.ids
    await actor.settle(lease.id, [Report(seq, seq + 1, values)])
    return await put


def test_the_outcomes_of_a_put_that_is_alone_come_with_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The poll waits on beside it, for what comes later; the next put acknowledges them."""
    monkeypatch.setattr(queue_actor, "SOON_S", LONG)
    monkeypatch.setattr(queue_actor, "REMIND_S", LONG)

    async def test(actor: QueueActor) -> None:
        poll = await started(actor.poll(1, wait=LONG))
        cursor = None
        for number in range(3):
            accepted, outcomes = await ran_alone(actor, number, cursor)
            assert accepted == Accepted(number, 1)
            assert outcomes is not None
            assert [outcome.first for outcome in outcomes.outcomes] == [number]
            cursor = outcomes.cursor
            assert not poll.done()
        await actor.admit(calls(3))
        await actor.cancel([(3, 4)])
        assert [outcome.first for outcome in (await poll).outcomes] == [2, 3]  # it acknowledges nothing

    run(test)


def test_a_put_that_is_alone_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer was lost: the same once more."""
    monkeypatch.setattr(queue_actor, "SOON_S", LONG)

    async def test(actor: QueueActor) -> None:
        answer = await ran_alone(actor, 0)
        assert await actor.admit_alone(calls(0), client=1, cursor=None, producer=7, number=0) == answer

    run(test)


def test_whoever_read_with_an_answer_and_was_silent_is_reminded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its poll, the next of which acknowledges."""
    monkeypatch.setattr(queue_actor, "SOON_S", LONG)
    monkeypatch.setattr(queue_actor, "REMIND_S", 0.0)

    async def test(actor: QueueActor) -> None:
        poll = await started(actor.poll(1, wait=LONG))
        _, outcomes = await ran_alone(actor, 0)
        assert (await poll) == outcomes

    run(test)


def test_a_put_that_is_alone_waits_only_so_long() -> None:
    """Later outcomes come by the poll, which was there before."""

    async def test(actor: QueueActor) -> None:
        poll = await started(actor.poll(1, wait=LONG))
        assert await actor.admit_alone(calls(0), client=1, cursor=None, producer=7, number=0) == (Accepted(0, 1), None)
        assert not poll.done()
        await actor.cancel([(0, 1)])
        assert len((await poll).outcomes) == 1

    run(test)


def test_large_outcomes_come_by_the_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """They might have to travel twice. It hears of them at once."""
    monkeypatch.setattr(queue_actor, "SOON_S", LONG)
    monkeypatch.setattr(queue_actor, "REMIND_S", 100 * LONG)

    async def test(actor: QueueActor) -> None:
        poll = await started(actor.poll(1, wait=LONG))
        assert await ran_alone(actor, 0, values=bytes(100_000)) == (Accepted(0, 1), None)
        for _ in range(20):  # turns of the event loop, not the next time that the queue looks at its clock
            await asyncio.sleep(0)
        assert poll.done()
        assert len((await poll).outcomes) == 1

    run(test)


@pytest.mark.parametrize("how", ["poll", "cancel", "close"])
def test_what_comes_between_a_put_and_its_outcomes(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A newer poll, the end of the caller or that of the queue: no poll is forgotten."""
    monkeypatch.setattr(queue_actor, "SOON_S", LONG)
    monkeypatch.setattr(queue_actor, "REMIND_S", 0.0)

    async def test(actor: QueueActor) -> None:
        poll = await started(actor.poll(1, wait=LONG))
        put = await started(actor.admit_alone(calls(0), client=1, cursor=None, producer=7, number=0))
        if how == "poll":
            newer = await started(actor.poll(1, wait=LONG))
            assert await put == (Accepted(0, 1), None)
            assert (await poll).outcomes == ()
            poll = newer
        elif how == "cancel":
            put.cancel()
            await asyncio.wait([put])
        else:
            await actor.close()
            assert (await poll).outcomes == ()
            return
        await actor.cancel([(0, 1)])
        assert len((await poll).outcomes) == 1

    run(test)


def test_join_waits_until_nothing_is_unfinished() -> None:
    """Delivered messages count; it answers with what it saw."""

    async def test(actor: QueueActor) -> None:
        assert (await actor.join()).idle
        await actor.put_block(b"block", 2)
        lease = await actor.lease(2)
        assert lease is not None
        join = await started(actor.join(LONG))
        await actor.ack(lease, [0])
        await asyncio.sleep(0)
        assert not join.done()
        assert await actor.join() == ("local", 2, 1, False)
        await actor.ack(lease)
        assert await join == ("local", 2, 2, True)

    run(test)


def test_join_waits_for_clients_that_put_again() -> None:
    """A new life of a queue is not idle before they said that they are done."""

    async def main() -> None:
        actor = QueueActor(expected=["a", "b"])
        await actor.resubmitted("a")
        join = await started(actor.join(LONG))
        await actor.resubmitted("b")
        assert (await join).idle
        await actor.close()

    asyncio.run(main())


def test_a_client_that_never_puts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not waited for without end."""
    monkeypatch.setattr(queue_actor, "RESUBMIT_GRACE_S", 0.02)
    monkeypatch.setattr(queue_actor, "HEARTBEAT_S", 0.01)

    async def main() -> None:
        actor = QueueActor(expected=["gone"])
        assert not (await actor.join()).idle
        assert (await actor.join(LONG)).idle
        await actor.close()

    asyncio.run(main())


def test_a_deaf_queue_expires_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop could not run for longer than two heartbeats: the deadline moves by that gap."""
    monkeypatch.setattr(queue_actor, "HEARTBEAT_S", 0.01)

    async def test(actor: QueueActor) -> None:
        await actor.put(b"a")
        lease = await actor.lease(1, owner="a", ttl=100 * MS)
        assert lease is not None
        deadline = actor.queue.next_ready_at()
        assert deadline is not None
        loop = asyncio.get_running_loop()
        before = loop.time()
        while loop.time() < before + 0.15:  # hold the loop, as a task that keeps the GIL would
            pass
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (await actor.stats()).delivered == 1
        moved = actor.queue.next_ready_at()
        assert moved is not None
        assert moved >= deadline + 100 * MS

    run(test)


def test_close_lets_everybody_go() -> None:
    """Who waits is answered with nothing."""

    async def main() -> None:
        actor = QueueActor()
        await actor.put(b"a")
        await actor.lease(1)
        lease, poll = await started(actor.lease(1, wait=LONG)), await started(actor.poll(1, wait=LONG))
        join = await started(actor.join(LONG))
        await actor.close()
        assert await lease is None
        assert (await poll).outcomes == ()
        assert not (await join).idle

    asyncio.run(main())


def test_a_delayed_message_is_not_missed_by_a_timer_for_something_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that lapses in an hour has set the timer; a message due in 50 ms does not wait for it."""
    monkeypatch.setattr(queue_actor, "HEARTBEAT_S", 30.0)  # after so long the timer comes at the latest

    async def test(actor: QueueActor) -> None:
        await actor.admit(calls(0))
        assert await actor.lease(1, owner="a", ttl=3600 * 10**9)
        parked = await started(actor.lease(1, owner="b", wait=LONG))
        await actor.admit([Batch(1, b"", client=1, first=1, keep=Keep.STREAM, ready_at=time.time_ns() + 50 * MS)])
        begin = time.monotonic()
        lease = await parked
        assert lease is not None
        assert lease.ids == [1]
        assert 0.03 < time.monotonic() - begin < 15.0

    run(test)


def suspect(first: int) -> list[Batch]:
    """A call that was lost with its queue twice."""
    return [Batch(1, b"", client=1, first=first, keep=Keep.STREAM, resent=2)]


def test_what_may_kill_its_worker_goes_to_others() -> None:
    """The host's own consumer leaves a suspect to another worker that serves the queue."""

    async def test(actor: QueueActor) -> None:
        here = await started(actor.lease(1, owner="host", near=True, wait=LONG))
        there = await started(actor.lease(1, owner="other", wait=LONG))
        await actor.admit(suspect(0))
        assert await there
        await actor.admit(calls(1))
        assert await here

    run(test)


def test_a_suspect_runs_here_if_nobody_else_serves() -> None:
    """Better than never."""

    async def test(actor: QueueActor) -> None:
        await actor.admit(suspect(0))
        assert await actor.lease(1, owner="host", near=True)

    run(test)


def test_a_suspect_waits_a_while_for_a_lost_worker_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A nanny may bring it back; after that the host's own consumer takes it."""
    monkeypatch.setattr(queue_actor, "RESTART_S", 0.1)

    async def test(actor: QueueActor) -> None:
        await actor.admit(calls(0))
        assert await actor.lease(1, owner="other")
        lost_at = time.monotonic()
        await actor.owner_lost("other")  # it held one message: a suspect
        assert await actor.lease(1, owner="host", near=True, wait=LONG)
        assert time.monotonic() - lost_at >= 0.1

    run(test)


def test_a_suspect_waits_for_others_to_find_the_new_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was put again after losses is not taken by the new host's consumer because that asks first."""
    monkeypatch.setattr(queue_actor, "RESTART_S", 0.1)

    async def test() -> None:
        actor = QueueActor(expected=["client"])
        await actor.admit(suspect(0))
        await actor.resubmitted("client")  # which may be over before anybody asks
        asked_at = time.monotonic()
        assert await actor.lease(1, owner="host", near=True, wait=LONG)
        assert time.monotonic() - asked_at >= 0.1
        await actor.close()

    asyncio.run(test())


def test_who_is_gone_is_forgotten() -> None:
    """Also by a queue that nobody near asks: workers come and go for as long as a pool lives."""

    async def test(actor: QueueActor) -> None:
        for owner in ("a#1", "b#1"):
            await actor.lease(1, owner=owner)
        actor._asked_at["a#1"] -= ABSENT_S + 1
        await actor.lease(1, owner="a#2")
        assert set(actor._asked_at) == {"b#1", "a#2"}

    run(test)
