"""A queue goes from one host to another, without a cluster: in pieces, as often as it is asked for, to one place."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from daskqueue.wire import moving
from daskqueue.wire.moving import MovingQueue, Piece, fetch
from daskqueue.wire.operations import LOST, OK
from daskqueue.worker.queue_actor import QueueActor
from daskqueue.worker.queue_host import HostOrder, OrderRefused, QueueHost
from daskqueue_core.batch import Batch, Buffer, Keep
from daskqueue_core.queue import Accepted, Demand, Full

LONG = 60.0  # seconds nobody waits: what is awaited comes, or the test's time limit ends it


def order(epoch: int, **options: Any) -> HostOrder:
    """To serve the queue "u"."""
    return HostOrder("u", epoch, "p", 0, options)


def calls(first: int, body: Buffer = b"block") -> dict[str, Any]:
    """A put of client 1."""
    return {"batches": [Batch(1, body, client=1, first=first, keep=Keep.STREAM)], "producer": 7, "number": first}


LEASE: dict[str, Any] = {"limit": 1, "owner": "w", "demand": Demand(1), "reports": ()}


class Pair:
    """Two hosts; `old` serves the queue "u" under epoch 0."""

    def __init__(self) -> None:
        self.old, self.new = QueueHost("old", lambda _: None), QueueHost("new", lambda _: None)

    def ask(self, epoch: int, source: QueueHost | None = None) -> Callable[[int], Any]:
        """How whoever serves it under `epoch` asks for it."""
        return partial((source or self.old).hand_over, "u", epoch)

    async def move(self, epoch: int = 1) -> list[str]:
        """From the old host to the new one."""
        return await self.new.take_over(order(epoch), partial(fetch, self.ask(epoch)))


def run(test: Callable[[Pair], Coroutine[Any, Any, None]]) -> None:
    """Run a test with two hosts."""

    async def main() -> None:
        pair = Pair()
        await pair.old.open(order(0))
        try:
            await test(pair)
        finally:
            await pair.old.close()
            await pair.new.close()

    asyncio.run(main())


async def waiting(*requests: Coroutine[Any, Any, Any]) -> "list[asyncio.Future[Any]]":
    """These as tasks that have come to where they wait."""
    tasks = [asyncio.ensure_future(request) for request in requests]
    for _ in range(3):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)
    return tasks


def test_who_waits_is_sent_on() -> None:
    """Leases, polls, joins and puts that wait are answered as by a host that does not have the queue."""

    async def test(pair: Pair) -> None:
        call = pair.old.call
        await call("admit", "u", 0, calls(0))
        await call("lease", "u", 0, LEASE)
        requests = await waiting(
            call("lease", "u", 0, LEASE | {"wait": LONG}),
            call("poll", "u", 0, {"client": 1, "wait": LONG}),
            call("join", "u", 0, {"wait": LONG}),
            call("admit", "u", 0, calls(2)),
        )
        await pair.move()
        assert await asyncio.gather(*requests) == [(LOST,)] * 4
        assert await call("stats", "u", 0, {}) == (LOST,)
        assert await pair.new.call("admit", "u", 1, calls(1)) == (OK, Accepted(1, 1))

    run(test)


def test_each_names_the_epoch() -> None:
    """Who has not heard of a move, or has heard of one that is not there yet, is not served."""

    async def test(pair: Pair) -> None:
        assert (await pair.old.call("stats", "u", 0, {}))[0] == OK
        assert await pair.old.call("stats", "u", 1, {}) == (LOST,)
        await pair.move()
        assert (await pair.new.call("stats", "u", 1, {}))[0] == OK
        assert await pair.new.call("stats", "u", 0, {}) == (LOST,)

    run(test)


def test_leases_go_along() -> None:
    """With who holds them; a request that comes again gets the same."""

    async def test(pair: Pair) -> None:
        await pair.old.call("admit", "u", 0, calls(0))
        _, lease = await pair.old.call("lease", "u", 0, LEASE | {"request": 5})
        assert await pair.move() == ["w"]
        _, again = await pair.new.call("lease", "u", 1, LEASE | {"request": 5})
        assert (again.id, again.runs) == (lease.id, lease.runs)

    run(test)


def test_what_its_host_knew_goes_along() -> None:
    """Who is expected, whose put was refused, who asks for work."""

    async def test() -> None:
        old = QueueActor(expected=["c1", "c2"])
        old.queue.maxsize = 1
        await old.resubmitted("c2")
        await old.admit(**calls(0))
        assert isinstance(await old.admit(**calls(1)), Full)
        await old.lease(1, owner="w", demand=Demand(1))
        state = old.hand_over()
        new = QueueActor(before=state)
        assert state[1:] == (("c1",), (7,), ("w",))
        assert new.hand_over()[1:] == state[1:]

    asyncio.run(test())


def test_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small and large bodies; a piece whose answer is lost is asked for again; the queue is the same."""
    monkeypatch.setattr(moving, "PIECE_BYTES", 1 << 17)
    monkeypatch.setattr(moving, "PAUSE_S", 0.0)
    bodies = [bytes([n]) * size for n, size in enumerate([10, 1 << 16, 1000, 1 << 17, 1 << 18, 60_000, 60_000, 60_000])]

    async def test(pair: Pair) -> None:
        for at, body in enumerate(bodies):
            await pair.old.call("admit", "u", 0, calls(at, memoryview(body)))
        asked: list[int] = []

        async def ask(first: int) -> Piece | None:
            asked.append(first)
            answer = await pair.old.hand_over("u", 1, first)
            if len(asked) % 2:
                raise OSError("the connection broke")
            return answer

        await pair.new.take_over(order(1), partial(fetch, ask))
        for body in bodies:
            _, lease = await pair.new.call("lease", "u", 1, LEASE)
            assert bytes(lease.parts[0].body) == body
        assert sorted(set(asked)) == [0, 1, 3, 4], "the pickle, its rest and a body, two more bodies"
        assert len(asked) == 8

    run(test)


def test_a_host_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not asked for ever, and the queue is not served."""
    monkeypatch.setattr(moving, "FETCH_S", 0.0)
    monkeypatch.setattr(moving, "PAUSE_S", 0.001)

    async def test(pair: Pair) -> None:
        async def ask(first: int) -> Piece | None:
            raise OSError("nobody listens")

        with pytest.raises(OSError, match="nobody listens"):
            await pair.new.take_over(order(1), partial(fetch, ask))
        assert not pair.new.actors

    run(test)


def test_an_order_that_comes_twice() -> None:
    """While the first is carried out, and afterwards."""

    async def test(pair: Pair) -> None:
        assert await asyncio.gather(pair.move(), pair.move()) == [[], []]
        assert await pair.move() == []
        assert (await pair.new.call("stats", "u", 1, {}))[0] == OK

    run(test)


def test_called_off() -> None:
    """The new host was told to drop it while it fetched: it is served where it was, under another epoch."""

    async def test(pair: Pair) -> None:
        await pair.old.call("admit", "u", 0, calls(0))

        async def bring() -> MovingQueue | None:
            queue = await fetch(pair.ask(1))
            await pair.new.drop("u", 1)
            return queue

        with pytest.raises(OrderRefused, match="has passed"):
            await pair.new.take_over(order(1), bring)
        assert not pair.new.actors
        assert await pair.old.call("stats", "u", 0, {}) == (LOST,)
        assert await pair.old.take_over(order(2), partial(fetch, pair.ask(2))) == []
        _, stats = await pair.old.call("stats", "u", 2, {})
        assert stats.ready == 1

    run(test)


def test_only_to_a_later_epoch() -> None:
    """An order that was overtaken takes no queue away, nor brings one back."""

    async def test(pair: Pair) -> None:
        await pair.move(epoch=5)
        assert await pair.new.hand_over("u", 4, 0) is None
        with pytest.raises(OrderRefused, match="has passed"):
            await pair.move(epoch=3)
        with pytest.raises(OrderRefused, match="has passed"):
            await pair.new.open(order(5 - 1))
        assert (await pair.new.call("stats", "u", 5, {}))[0] == OK

    run(test)


def test_dropped_after_the_move() -> None:
    """The old host lets go of what it kept; there is nothing to take over any more."""

    async def test(pair: Pair) -> None:
        await pair.move()
        await pair.old.drop("u", 0)
        assert await pair.old.hand_over("u", 2, 0) is None
        other = QueueHost("other", lambda _: None)
        with pytest.raises(OrderRefused, match="not there any more"):
            await other.take_over(order(2), partial(fetch, pair.ask(2)))

    run(test)


def test_a_host_that_has_closed() -> None:
    """It neither gives nor takes."""

    async def test(pair: Pair) -> None:
        await pair.new.close()
        with pytest.raises(OrderRefused, match="leaves"):
            await pair.move()
        with pytest.raises(OrderRefused, match="leaves"):
            await pair.new.open(order(9))
        await pair.old.close()
        assert await pair.old.hand_over("u", 3, 0) is None

    run(test)


def test_the_room_is_that_of_the_new_host() -> None:
    """A quarter of its memory."""

    async def test(pair: Pair) -> None:
        roomy = QueueHost("roomy", lambda _: None, memory_limit=4000)
        await roomy.take_over(order(1), partial(fetch, pair.ask(1)))
        assert roomy.actors["u"].queue.max_bytes == 1000
        await roomy.close()

    run(test)
