"""What callers of a queue wait on, on the event loop: futures that are resolved with nothing, or after a time.

Not here: when anybody is let go; that is the queue actor's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from daskqueue_core.queue import Demand, Lease

__all__ = ["Alive", "LeaseRequest", "Polls", "Turns", "resolve", "wait_for"]

Alive = Callable[[], bool]
T = TypeVar("T")


async def wait_for(future: asyncio.Future[T], seconds: float) -> T:
    """The future's result, or None after `seconds`; a cancelled caller cancels it."""
    loop = asyncio.get_running_loop()
    timer = loop.call_later(seconds, resolve, future)
    try:
        return await future
    finally:
        timer.cancel()


def resolve(future: asyncio.Future[Any]) -> None:
    """Let it go, with nothing, if it still waits."""
    if not future.done():
        future.set_result(None)


class LeaseRequest:
    """What a consumer asks for, and where it waits for it."""

    __slots__ = ("alive", "answer", "asked_at", "limit", "near", "suspects", "terms")

    answer: asyncio.Future[Lease | None]  # once it is parked

    def __init__(self, limit: int, suspects: bool, near: bool, alive: Alive | None, terms: dict[str, Any]) -> None:
        self.limit = limit
        self.suspects = suspects
        self.near = near
        self.alive = alive
        self.terms = terms
        self.asked_at = asyncio.get_running_loop().time()

    def terms_now(self) -> dict[str, Any]:
        """The terms, by how much time its job has left now."""
        demand: Demand | None = self.terms["demand"]
        if demand is None or demand.time_left is None:
            return self.terms
        left = demand.time_left - (asyncio.get_running_loop().time() - self.asked_at)
        return {**self.terms, "demand": demand._replace(time_left=left)}

    @property
    def is_over(self) -> bool:
        """Whether its caller cannot be answered any more, or has been."""
        return self.answer.done() or (self.alive is not None and not self.alive())


class Polls:
    """Clients that wait for something to read, one call each. `has_news` says of a client whether there is."""

    def __init__(self, has_news: Callable[[int], bool]) -> None:
        self._has_news = has_news
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._ended = False

    async def wait(self, client: int, seconds: float) -> None:
        """Wait up to so many seconds for news. An older call of that client waits no more."""
        older = self._waiting.pop(client, None)
        if older is not None:
            resolve(older)
        await self._wait(client, seconds)

    async def wait_beside(self, client: int, seconds: float) -> None:
        """As `wait`, but an older call waits on, and does not hear of what comes meanwhile."""
        older = self._waiting.pop(client, None)
        try:
            await self._wait(client, seconds)
        finally:
            if older is not None and not older.done():
                if self._ended or client in self._waiting:
                    resolve(older)
                else:
                    self._waiting[client] = older

    async def _wait(self, client: int, seconds: float) -> None:
        news = self._waiting[client] = asyncio.get_running_loop().create_future()
        try:
            if not self._has_news(client):  # some may have come while we were answered
                await wait_for(news, seconds)
        finally:
            if self._waiting.get(client) is news:
                del self._waiting[client]

    def wake(self) -> None:
        """Something has changed: those who have news now go on."""
        for client, news in self._waiting.items():
            if self._has_news(client):
                resolve(news)

    def end_all(self) -> None:
        """Let everybody go."""
        self._ended = True
        for news in self._waiting.values():
            resolve(news)


class Turns:
    """Puts that overtook their predecessors, each waiting for its turn."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, int], list[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def begin(self, producer: int, number: int) -> asyncio.Future[None]:
        """Wait for the puts before put `number` of `producer`. The same put may wait more than once."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((producer, number), []).append(turn)
        return turn

    def end(self, producer: int, number: int, turn: asyncio.Future[None]) -> None:
        """It waits no more."""
        waiting = self._waiting.get((producer, number), [])
        if turn in waiting:
            waiting.remove(turn)
            if not waiting:
                del self._waiting[producer, number]

    def come(self, producer: int, number: int) -> None:
        """It is the turn of put `number`."""
        for turn in self._waiting.pop((producer, number), ()):
            resolve(turn)

    def refuse(self, producer: int) -> None:
        """A put of `producer` was refused: those that wait for it hear of it."""
        for key in [key for key in self._waiting if key[0] == producer]:
            self.come(*key)

    def end_all(self) -> None:
        """Let everybody go."""
        for key in list(self._waiting):
            self.come(*key)
