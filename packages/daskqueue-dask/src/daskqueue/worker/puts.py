"""Puts that wait at a queue: for those that they overtook, and for room.

Not here: what admits them (core's queue), and what makes room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Final, Protocol

from daskqueue.worker.waiting import Turns, resolve, wait_for
from daskqueue_core.batch import Batch
from daskqueue_core.ledger import Early
from daskqueue_core.queue import Accepted, Full, PutAnswer

__all__ = ["Admit", "Puts", "RoomAgain"]

EARLY_WAIT_S: Final = 30.0
REFUSED: Final = 1000


class Admit(Protocol):
    """Asks the queue once."""

    async def __call__(self, batches: Sequence[Batch], producer: int | None, number: int) -> PutAnswer: ...


class RoomAgain(Protocol):
    """After how many seconds to ask again for room, though nothing happened."""

    def __call__(self, full: Full, /) -> float: ...


class Puts:
    """The puts of one queue that wait. `refused` are producers whose puts are refused until the first comes again."""

    def __init__(self, admit: Admit, room_again_s: RoomAgain, refused: Collection[int] = ()) -> None:
        self._ask = admit
        self._room_again_s = room_again_s
        self.refused = set(refused)
        self._early = Turns()
        self._line: dict[object, asyncio.Future[None]] = {}  # who waits for room, in the order they came
        self._ended = False

    @property
    def are_early(self) -> bool:
        """Whether there are puts that wait for those before them."""
        return len(self._early) > 0

    async def admit(self, batches: Sequence[Batch], producer: int | None, number: int, wait: float) -> PutAnswer:
        """Admit a producer's put, in number order: one that overtook its predecessors waits for them.

        Waits up to `wait` seconds for room, behind those that wait already: a large put is not starved by small ones.
        """
        answer: PutAnswer = Full(0)
        try:
            if not self._line or wait <= 0:
                answer = await self._ask(batches, producer, number)
            if isinstance(answer, Full) and wait > 0:
                answer = await self._await_room(batches, producer, number, wait)
            if producer is not None and isinstance(answer, Early) and producer not in self.refused:
                answer = await self._await_turn(batches, producer, number)
                if isinstance(answer, Full) and wait > 0:
                    answer = await self._await_room(batches, producer, number, wait)
        except Exception:
            if producer is not None:
                self._refuse(producer)
            raise
        if producer is None:
            return answer
        if isinstance(answer, Early) and producer in self.refused:
            return Full(0)  # its predecessor was refused, and it with it
        if isinstance(answer, Full) and wait <= 0:
            self._refuse(producer)
        elif isinstance(answer, Accepted):
            self.refused.discard(producer)
            self._early.come(producer, number + 1)
        return answer

    async def _await_turn(self, batches: Sequence[Batch], producer: int, number: int) -> PutAnswer:
        """Admit after the puts that this one overtook, if they come in time. They may have come just now."""
        turn = self._early.begin(producer, number)
        try:
            answer = await self._ask(batches, producer, number)
            if isinstance(answer, Early):
                await wait_for(turn, EARLY_WAIT_S)
                answer = await self._ask(batches, producer, number)
            return answer
        finally:  # a caller that is cancelled must not keep the queue from being idle
            self._early.end(producer, number, turn)

    def _refuse(self, producer: int) -> None:
        """A put was refused: those of its producer that wait for it are refused with it."""
        if len(self.refused) >= REFUSED:
            self.refused.pop()
        self.refused.add(producer)
        self._early.refuse(producer)

    async def _await_room(self, batches: Sequence[Batch], producer: int | None, number: int, wait: float) -> PutAnswer:
        """Admit when there is room, or answer `Full` after `wait` seconds."""
        loop = asyncio.get_running_loop()
        until = loop.time() + wait
        answer: PutAnswer = Full(0)
        place = object()
        try:
            while isinstance(answer, Full) and loop.time() < until and not self._ended:
                room = self._line[place] = loop.create_future()  # first: room may be made while we ask
                if next(iter(self._line)) is place:
                    answer = await self._ask(batches, producer, number)
                if isinstance(answer, Full):
                    await wait_for(room, min(until - loop.time(), self._room_again_s(answer)))
        finally:
            self._line.pop(place, None)  # it is not there if the queue ended before
            self.wake()
        return answer

    def wake(self) -> None:
        """There may be room: who waits first asks again."""
        for room in self._line.values():
            resolve(room)
            return

    def end_all(self) -> None:
        """Let everybody go."""
        self._ended = True
        self._early.end_all()
        for room in self._line.values():
            resolve(room)
