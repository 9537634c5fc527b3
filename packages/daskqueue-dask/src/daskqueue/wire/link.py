"""The one way to call a queue: by name, failing fast, asking the directory again, repeating.

Every operation is idempotent, so a call whose connection broke is simply repeated at the address the directory gives
now; so is one whose host says nothing, once the directory has another (`silence`). A call ends with an answer, with
`QueueReplaced` when the queue it names is gone and another life of it took its place, with `PoolGone` when the pool is,
with `SchedulerGone` when nobody can be asked any more, or, if its patience is limited, with `QueueUnavailable`: never
with a dropped connection, and it never hangs on one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from distributed.comm import Comm
from distributed.core import ConnectionPool, send_recv

from daskqueue.wire.operations import CODECS, ERROR, HANDLER, LOST, OK
from daskqueue.wire.silence import Silences, Waiting
from daskqueue_core.directory import Place, newest
from daskqueue_core.errors import DaskQueueError, QueueUnavailable

__all__ = ["Link", "PoolGone", "QueueReplaced", "RemoteFailure", "Route", "SchedulerGone", "new_connection_pool"]

CONNECT_TIMEOUT_S: Final = 2.0
CONNECT_NEWS_S: Final = 0.1
ANSWER_S: Final = 2.0  # most answers take milliseconds; those of a call with a `wait` that much more
_FIRST_PAUSE_S: Final = 0.01
_LONGEST_PAUSE_S: Final = 0.25


class QueueReplaced(Exception):
    """The life of the queue that was named is over; `place` is where the next one is."""

    def __init__(self, place: Place) -> None:
        super().__init__(f"queue was replaced by {place.uuid} at {place.address}")
        self.place = place


class PoolGone(Exception):
    """The directory knows no such pool any more."""


class SchedulerGone(Exception):
    """The directory cannot be asked any more: the Dask scheduler is gone for good."""


class RemoteFailure(DaskQueueError):
    """A queue's host answered with an error; `kind` is the name of its class."""

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


Resolve = Callable[[str, str], Awaitable["list[Place] | None"]]
"""Asks the directory for the places of a pool, by name and id; None: it is over, whether or not there is another of
that name. Raises OSError (ask again) or SchedulerGone."""

Local = Callable[[str], "Callable[..., Awaitable[tuple[Any, ...]]] | None"]
"""The handler of a queue that this very process hosts, by uuid."""


class Route:
    """Where a pool's queues are, as far as this process knows. `id` tells the pool from others of its name."""

    def __init__(self, pool: str, places: list[Place], id: str = "") -> None:
        self.pool = pool
        self.places = places
        self.id = id

    def __len__(self) -> int:
        return len(self.places)


def new_connection_pool(connection_args: dict[str, Any]) -> ConnectionPool:
    """A pool of our own: Dask's retries a refused connection for 30 s, and long polls would fill it.

    Nothing is offloaded to a thread: what is large in our messages are frames, which are not copied, and to find out
    how large a message is Dask looks at all its fields, which takes as long as all the rest of writing it.
    """
    return ConnectionPool(limit=2048, timeout=CONNECT_TIMEOUT_S, connection_args=connection_args, allow_offload=False)


class Link:
    """Calls queues by pool and index."""

    def __init__(self, connections: ConnectionPool, resolve: Resolve, local: Local | None = None) -> None:
        self._connections = connections
        self._resolve = resolve
        self._local = local
        self._refreshing: dict[int, asyncio.Future[None]] = {}
        self._silences = Silences()
        self._heard: dict[str, float] = {}  # by address of a host: when it answered last

    async def call(
        self,
        route: Route,
        index: int,
        op: str,
        *,
        uuid: str | None = None,
        patience: float | None = None,
        **arguments: Any,
    ) -> Any:
        """Call `op` of the pool's queue `index`, of its life `uuid` (default: whichever is there).

        After `patience` seconds without a host that answers: `QueueUnavailable`. None: it waits for one.
        """
        clock = asyncio.get_running_loop().time
        pause = _FIRST_PAUSE_S
        failing_since: float | None = None
        while True:
            place = route.places[index]
            if uuid is not None and place.uuid != uuid:
                raise QueueReplaced(place)
            trouble = "no worker hosts it"
            if place.up:
                try:
                    status, *answer = await self._ask(route, index, place, op, arguments)
                except OSError as error:
                    trouble = f"its host {place.address} does not answer: {error}"
                else:
                    self._heard[place.address] = clock()
                    if status == OK:
                        return answer[0]
                    if status == ERROR:
                        what = f"queue {index} of pool {route.pool!r} failed at {op}: {': '.join(answer)}"
                        raise RemoteFailure(what, answer[0])
                    assert status == LOST
                    trouble = f"its host {place.address} does not have it"
            if failing_since is None:
                failing_since = clock()
            elif patience is not None and clock() - failing_since >= patience:
                raise QueueUnavailable(route.pool, index, trouble)
            await self._refresh(route)
            if route.places[index] == place:  # not yet re-hosted: give the directory time
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    def silent_for(self, address: str) -> float | None:
        """Seconds since that host answered a call; None: it never has. Any thread may ask."""
        heard = self._heard.get(address)
        return None if heard is None else max(0.0, time.monotonic() - heard)

    async def _ask(self, route: Route, index: int, place: Place, op: str, arguments: dict[str, Any]) -> tuple[Any, ...]:
        handler = self._local(place.uuid) if self._local is not None else None
        if handler is not None:
            return await handler(op, place.uuid, place.epoch, arguments)
        codec = CODECS[op]
        comm = await self._connect(route, index, place)
        until = asyncio.get_running_loop().time() + ANSWER_S + arguments.get("wait", 0.0)
        waiting = Waiting(lambda: self._refresh(route), lambda: route.places[index] == place, until)
        self._silences.begin(comm, waiting)
        try:
            message = codec.pack(arguments)
            answer = await send_recv(comm, op=HANDLER, do=op, uuid=place.uuid, epoch=place.epoch, **message)
        finally:
            self._silences.end(comm)
            self._connections.reuse(place.address, comm)
        if not isinstance(answer, (list, tuple)):  # a worker without our handler: it came or leaves
            raise OSError(f"unexpected answer {answer!r}")
        return (OK, codec.unpack_answer(answer[1])) if answer[0] == OK else tuple(answer)

    async def _connect(self, route: Route, index: int, place: Place) -> Comm:
        """A connection to a queue's host, or OSError as soon as the directory says that the queue is not there.

        Dask repeats a refused connection until its timeout, and a worker that closes accepts and says nothing.
        """
        if any(not comm.closed() for comm in self._connections.available.get(place.address, ())):
            return await self._connections.connect(place.address)
        connecting = asyncio.ensure_future(self._connections.connect(place.address))
        try:
            while not (await asyncio.wait((connecting,), timeout=CONNECT_NEWS_S))[0]:
                await self._refresh(route)
                if route.places[index] != place:
                    raise OSError("the queue is not there any more")
            return connecting.result()
        except RuntimeError:  # ours is closed: this process leaves
            raise SchedulerGone from None
        except BaseException:
            if connecting.done() and not connecting.cancelled() and connecting.exception() is None:
                self._connections.reuse(place.address, connecting.result())
            connecting.cancel()
            raise

    async def _refresh(self, route: Route) -> None:
        """Ask the directory, once for all who wait."""
        running = self._refreshing.get(id(route))
        if running is None:
            running = self._refreshing[id(route)] = asyncio.ensure_future(self._ask_directory(route))
            running.add_done_callback(partial(self._refreshed, id(route)))
        await asyncio.shield(running)

    def _refreshed(self, route: int, done: asyncio.Future[None]) -> None:
        self._refreshing.pop(route, None)
        if not done.cancelled():
            done.exception()  # heard, also if nobody waits for it any more

    async def _ask_directory(self, route: Route) -> None:
        try:
            places = await self._resolve(route.pool, route.id)
        except OSError:
            await asyncio.sleep(_LONGEST_PAUSE_S)
            return
        if places is None:
            raise PoolGone(route.pool)
        route.places = newest(route.places, places)
