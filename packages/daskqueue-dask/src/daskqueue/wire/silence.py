"""Calls that get no answer in time: asks the directory whether the queue still is where they were made.

A process that hangs keeps its connections open. Dask gives it up after `worker-ttl`, and the directory finds its queues
another host, but nothing tells those that wait for an answer from the old one. So whoever waits for longer than an
answer takes asks, every two seconds, and hangs up if the queue is elsewhere: then the call is made again there. Costs
a dict entry a call, and nothing more as long as hosts answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, Protocol

__all__ = ["Abortable", "Silences", "Waiting"]

LOOK_S: Final = 2.0


class Abortable(Protocol):
    """What is asked of a connection."""

    def abort(self) -> None:
        """Hang up; who waits for an answer gets an error."""


class Waiting(NamedTuple):
    """A call under way."""

    refresh: Callable[[], Awaitable[None]]
    """Asks the directory. Raises what ends the call."""
    is_there: Callable[[], bool]
    """Whether the queue is where it was when the call was made, as far as this process knows."""
    until: float
    """When an answer should have come, by the event loop's clock."""


class Silences:
    """Calls under way, by connection."""

    def __init__(self) -> None:
        self._waiting: dict[Abortable, Waiting] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._asking: set[asyncio.Future[Any]] = set()

    def begin(self, comm: Abortable, waiting: Waiting) -> None:
        """A call has been made."""
        self._waiting[comm] = waiting
        self._look_later()

    def end(self, comm: Abortable) -> None:
        """It has been answered, or given up."""
        self._waiting.pop(comm, None)

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        late = [(comm, waiting) for comm, waiting in self._waiting.items() if waiting.until < now]
        if late and not self._asking:
            asking = asyncio.gather(*[self._ask(*each) for each in late])
            self._asking.add(asking)
            asking.add_done_callback(self._asking.discard)
        if self._waiting:
            self._look_later()

    async def _ask(self, comm: Abortable, waiting: Waiting) -> None:
        try:
            await waiting.refresh()
        except Exception:
            there = False  # no such pool, no scheduler: the call ends with that
        else:
            there = waiting.is_there()
        if not there and self._waiting.get(comm) is waiting:
            comm.abort()
