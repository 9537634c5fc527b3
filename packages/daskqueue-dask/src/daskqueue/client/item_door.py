"""Puts that do not wait, or not for long: one after the other, so that a refused one leaves nothing behind.

What may wait for ever goes through the `Submitter`, which sends many puts at once.
"""

from __future__ import annotations

import asyncio
import secrets
from queue import Full as QueueFull

from daskqueue.wire.link import Link, Route
from daskqueue_core.batch import Batch
from daskqueue_core.queue import Accepted, Full

__all__ = ["ItemDoor"]


class ItemDoor:
    """One queue's entrance for such puts."""

    def __init__(self, link: Link, route: Route, index: int) -> None:
        self._link = link
        self._route = route
        self._index = index
        self._turn = asyncio.Lock()
        self._renew()

    def _renew(self) -> None:
        self._producer = secrets.randbits(64)
        self._number = 0

    async def put(self, batch: Batch, wait: float, patience: float) -> None:
        """Put `batch`; `queue.Full` after `wait` seconds without room, `QueueUnavailable` after `patience` seconds."""
        async with self._turn:
            try:
                while True:
                    answer = await self._link.call(
                        self._route,
                        self._index,
                        "admit",
                        patience=patience,
                        batches=(batch,),
                        producer=self._producer,
                        number=self._number,
                        wait=wait,
                    )
                    if isinstance(answer, (Accepted, Full)):
                        break
                    self._renew()  # another life of the queue, or it has forgotten us
            except BaseException:
                self._renew()  # whether it was admitted is not known
                raise
            if isinstance(answer, Full):
                raise QueueFull(f"queue {self._index} of pool {self._route.pool!r} is full: nothing was put")
            self._number += 1
