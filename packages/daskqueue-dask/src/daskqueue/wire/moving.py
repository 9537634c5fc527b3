"""A queue in memory on its way to another host: frames, sent a few at a time, that do not hold up what else is said.

Large bodies of batches are frames of their own and are never copied; all else is one pickle, in frames of a piece each.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

from distributed.protocol import to_serialize

from daskqueue.wire.apart import apart
from daskqueue.wire.operations import INLINE_BYTES
from daskqueue_core.batch import Buffer
from daskqueue_core.handover import HandOver

__all__ = ["APART_BYTES", "MovingQueue", "Packed", "Piece", "fetch", "pack", "pack_piece", "piece", "unpack"]

APART_BYTES: Final = INLINE_BYTES
"""Bodies of so many bytes and more are frames of their own."""

PIECE_BYTES: Final = 4 << 20
FETCH_S: Final = 1.0  # beside what a connection takes to fail
PAUSE_S: Final = 0.05


class MovingQueue(NamedTuple):
    """A queue that was handed over, and what its host knew of those around it."""

    state: HandOver
    expected: tuple[str, ...]  # clients that still may put again what was lost before
    refused: tuple[int, ...]  # producers whose next put was refused, and has not come again
    served_by: tuple[str, ...]  # owners that asked for work


class Packed(NamedTuple):
    """A queue as frames: `pickled` of them are the pickle, the others bodies."""

    pickled: int
    frames: list[Buffer]


class Piece(NamedTuple):
    """Some frames of a queue that has `total`."""

    pickled: int
    total: int
    frames: list[Any]


def pack(queue: MovingQueue) -> Packed:
    """All of it."""
    bodies = queue.state.bodies
    rest = queue._replace(state=queue.state._replace(bodies=()))
    data = memoryview(pickle.dumps((rest, [at for at, _ in bodies]), protocol=5))
    frames: list[Buffer] = [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]
    return Packed(len(frames), frames + [body for _, body in bodies])


def unpack(packed: Packed) -> MovingQueue:
    """The queue; its large bodies are the frames themselves."""
    rest, places = pickle.loads(b"".join(packed.frames[: packed.pickled]))
    assert isinstance(rest, MovingQueue)
    bodies = list(zip(places, packed.frames[packed.pickled :], strict=True))
    return rest._replace(state=rest.state._replace(bodies=bodies))


def piece(packed: Packed, first: int) -> Piece:
    """Frame `first`, and those after it that go along."""
    stop, nbytes = first, 0
    while stop < len(packed.frames) and (stop == first or nbytes + len(packed.frames[stop]) <= PIECE_BYTES):
        nbytes += len(packed.frames[stop])
        stop += 1
    return Piece(packed.pickled, len(packed.frames), packed.frames[first:stop])


def pack_piece(some: Piece) -> list[Any]:
    """As a message (of lists: see `operations`): its frames travel without a copy."""
    return [*some[:2], [to_serialize(memoryview(frame)) for frame in some.frames]]


async def fetch(ask: Callable[[int], Awaitable[Piece | None]]) -> MovingQueue | None:
    """The queue, asked for piece by piece. `ask(first)` gives what `piece` gives, or None: it is not to be had.

    A piece whose answer is lost is asked for again, but not for longer than `FETCH_S`: then it raises OSError.
    """
    clock = asyncio.get_running_loop().time
    frames: list[Buffer] = []
    failing_since: float | None = None
    while True:
        try:
            some = await ask(len(frames))
        except OSError:
            failing_since = failing_since or clock()
            if clock() - failing_since > FETCH_S:
                raise
            await asyncio.sleep(PAUSE_S)
            continue
        if some is None:
            return None
        failing_since = None
        frames += some.frames
        if len(frames) == some.total:
            return await apart(unpack, Packed(some.pickled, frames))
