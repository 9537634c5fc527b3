"""Puts that wait for room, but never for so long that a host which hangs is not noticed."""

from __future__ import annotations

import asyncio
from math import inf
from queue import Full as QueueFull
from typing import Any

import pytest

from daskqueue.client import item_door
from daskqueue.client.item_door import put_now
from daskqueue.wire.link import Route
from daskqueue_core.batch import Batch
from daskqueue_core.queue import Accepted, Full


class FullQueue:
    """The way to a queue that has no room until it was asked `times` times."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.waits: list[float] = []

    async def call(self, *_: Any, wait: float, **__: Any) -> Any:
        """As `Link.call`."""
        self.waits.append(wait)
        await asyncio.sleep(wait)
        return Full(0) if len(self.waits) < self.times else Accepted(0, 1)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_door, "ROOM_WAIT_S", 0.01)


def put(queue: Any, wait: float) -> Accepted:
    """Put an item."""
    return asyncio.run(put_now(queue, Route("pool", []), 0, Batch(1, b"x"), wait=wait, patience=None))


def test_a_long_wait_is_many_short_ones() -> None:
    """Also one without an end."""
    queue = FullQueue(5)
    assert put(queue, inf).count == 1
    assert queue.waits == [0.01] * 5


def test_the_wait_is_over() -> None:
    """`queue.Full`, after the last part of it."""
    queue = FullQueue(1000)
    with pytest.raises(QueueFull):
        put(queue, 0.025)
    assert len(queue.waits) > 1
    assert max(queue.waits) <= 0.01


def test_no_wait() -> None:
    """The queue is asked once."""
    queue = FullQueue(2)
    with pytest.raises(QueueFull):
        put(queue, 0.0)
    assert queue.waits == [0.0]
