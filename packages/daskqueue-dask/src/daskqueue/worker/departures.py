"""The queues that were handed over from here: kept for whoever takes them over, until they are dropped.

An answer may be lost and a move be called off, so each is given as often as it is asked for.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from daskqueue.wire.apart import apart
from daskqueue.wire.moving import MovingQueue, Packed, Piece, pack, piece

__all__ = ["Departures"]


class _Departed(NamedTuple):
    epoch: int  # under which it was served here
    packed: asyncio.Task[Packed]


class Departures:
    """Queues that left, by uuid."""

    def __init__(self) -> None:
        self._departed: dict[str, _Departed] = {}

    def __contains__(self, uuid: str) -> bool:
        return uuid in self._departed

    def add(self, uuid: str, epoch: int, queue: MovingQueue) -> None:
        """This one was served under `epoch` until now."""
        self._departed[uuid] = _Departed(epoch, asyncio.ensure_future(apart(pack, queue)))

    async def piece(self, uuid: str, first: int) -> Piece:
        """A piece of that queue, from frame `first`: see `wire.moving`."""
        return piece(await asyncio.shield(self._departed[uuid].packed), first)

    def drop(self, uuid: str, epoch: int) -> None:
        """Nobody will ask for it any more, if it was served under `epoch` or an older one."""
        departed = self._departed.get(uuid)
        if departed is not None and departed.epoch <= epoch:
            del self._departed[uuid]

    def clear(self) -> None:
        """Let go of all."""
        self._departed.clear()
