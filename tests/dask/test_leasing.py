"""Requests for leases: one is open while a slot is free, whatever became of the one before."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

from distributed.core import Status

from daskqueue.wire.link import Route
from daskqueue.worker.leasing import Leasing
from daskqueue.worker.slots import Slots
from daskqueue_core.consumer import LeaseBook, RequestNumbers
from daskqueue_core.orders import Place


class Link:
    """Parks every request; one that is withdrawn ends when `closed` is set, as a connection does to a stalled host."""

    def __init__(self) -> None:
        self.asked = 0
        self.closed = asyncio.Event()

    async def call(self, *_: object, **__: object) -> None:
        """One request."""
        self.asked += 1
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await self.closed.wait()


class Actor:
    """A consumer that wants work."""

    ttl = 10**9

    is_stopping = False
    leasing: Leasing

    def pump(self) -> None:
        """Ask, if that can be done."""
        self.leasing.ask()

    def demand(self, uuid: str, free: int) -> None:
        """Whatever."""

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """In the background."""
        return asyncio.ensure_future(work)


def test_asked_again_after_a_slow_withdrawal() -> None:
    """Who asks while a withdrawn request still ends is refused, and asks again by itself when it has ended."""

    async def main() -> None:
        link, actor, slots = Link(), Actor(), Slots()
        slots.size = 1
        book = LeaseBook(RequestNumbers())

        async def heartbeat(*_: object) -> None:
            """Says what was given up."""

        node: Any = SimpleNamespace(
            link=link, book=lambda uuid: book, books={"q": book}, heartbeat=heartbeat, owner="w#1",
            serves_from=0.0, worker=SimpleNamespace(status=Status.running),
        )  # fmt: skip
        reporter: Any = SimpleNamespace(take=lambda *_: [], settled=lambda *_: None)
        route = Route("p", [Place("q", "tcp://host", 0, True)])
        actor.leasing = Leasing(node, route, actor, slots, reporter, once=False)
        actor.pump()
        await asyncio.sleep(0)
        assert link.asked == 1
        actor.leasing.withdraw()
        await asyncio.sleep(0)
        actor.pump()
        await asyncio.sleep(0)
        assert link.asked == 1, "the first one is still there"
        link.closed.set()
        for _ in range(10):
            await asyncio.sleep(0)
        assert link.asked == 2

    asyncio.run(main())
