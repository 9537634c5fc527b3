"""What all pools of one Dask client in this process share: its random number, task numbers, connections, callbacks."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

from distributed import Client, get_client

from daskqueue.client.callbacks import CallbackThread
from daskqueue.utils import logger
from daskqueue.wire.link import Link, SchedulerGone, new_connection_pool
from daskqueue.wire.operations import HANDLER, OK
from daskqueue_core.directory import Place
from daskqueue_core.errors import PoolClosed

__all__ = ["Session", "current_client"]

if TYPE_CHECKING:
    from daskqueue.client.pool_connection import PoolConnection

T = TypeVar("T")

WATCH_S: Final = 0.25
LOOK_S: Final = 1.0
CONNECTED_S: Final = 30.0
CLIENT_CLOSED: Final = "the Dask client of this pool was closed: make a new Client, and a new pool"
FORKED: Final = "this pool was made before this process was forked: make a new Client, and with it a pool, in the child"

_sessions: weakref.WeakKeyDictionary[Client, Session] = weakref.WeakKeyDictionary()
_sessions_lock = threading.Lock()

_forks = 0  # between the first process and this one; asking for its id costs more, and `submit` does it each time


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


_current_lock = threading.Lock()


def current_client() -> Client:
    """The Dask client of this thread or worker; ValueError if there is none.

    Two threads of a worker that ask first at the same time: Dask gives the second one a client that is not connected.
    """
    with _current_lock:
        try:
            client = get_client()
        except ValueError:
            raise ValueError("there is no Dask client: make one first, or pass it") from None
        deadline = time.monotonic() + CONNECTED_S
        while client.status == "newly-created" and time.monotonic() < deadline:
            time.sleep(0.01)
        return client


class Session:
    """One for each Dask client; `Session.of(client)` finds it."""

    def __init__(self, client: Client) -> None:
        self._client = weakref.ref(client)
        self.client_id: str = client.id
        self.id = secrets.randbits(64)
        self._made_after = _forks
        self.loop: asyncio.AbstractEventLoop = client.loop.asyncio_loop  # type: ignore[union-attr]
        self.callbacks = CallbackThread()
        self._numbers = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self.pools: dict[str, PoolConnection] = {}
        """One connection for each pool, whoever uses it: outcomes are collected once."""
        self._lock = threading.Lock()
        self.asynchronous: bool = client.asynchronous
        self._watching: asyncio.Task[None] | None = None
        self._watchers: set[Callable[[BaseException], None]] = set()
        self.connections = new_connection_pool(client.connection_args)
        self.link = Link(self.connections, self._resolve)

    @classmethod
    def of(cls, client: Client) -> Session:
        """The session of `client`, which must be open."""
        if client.status not in ("running", "connecting"):
            raise PoolClosed(f"the Dask client is {client.status}: make a new Client, and the pool with it")
        with _sessions_lock:
            session = _sessions.get(client)
            if session is None:
                session = _sessions[client] = cls(client)
            return session

    async def start(self) -> None:
        """Connect and watch, once."""
        if self._watching is None:
            self._watching = asyncio.ensure_future(self._watch())
            await self.connections.start()

    @property
    def client(self) -> Client:
        """The Dask client; `PoolClosed` if it is gone."""
        client = self._client()
        if client is None or client.status not in ("running", "connecting"):
            raise PoolClosed(CLIENT_CLOSED)
        return client

    @property
    def alive(self) -> bool:
        """Whether the Dask client has not given up its scheduler."""
        client = self._client()
        return client is not None and client.status in ("running", "connecting")

    def numbers(self, count: int) -> int:
        """`count` task numbers; returns the first."""
        with self._lock:
            first = self._numbers
            self._numbers += count
            return first

    @property
    def on_loop(self) -> bool:
        """Whether this thread runs the client's event loop, where nothing may block."""
        return asyncio._get_running_loop() is self.loop

    def check_may_wait(self) -> None:
        """Raise RuntimeError on the client's event loop: who waits there waits for ever, and nobody else goes on."""
        if self.on_loop:
            instead = "await it instead" if self.asynchronous else "call it from another thread"
            raise RuntimeError(f"this call would block the client's event loop: {instead}")

    def sync(self, coroutine: Coroutine[Any, Any, T]) -> Any:
        """As Dask does: the result of `coroutine`, or with an asynchronous client the coroutine, to be awaited."""
        return coroutine if self.asynchronous else self.run(coroutine)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` on the client's event loop and wait for it."""
        try:
            self.check_may_wait()
            self.check_here()
        except RuntimeError:  # as `PoolClosed` is one
            coroutine.close()
            raise
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        except RuntimeError:
            coroutine.close()
            raise PoolClosed(CLIENT_CLOSED) from None
        while True:
            try:
                return future.result(LOOK_S)
            except concurrent.futures.TimeoutError:
                if future.done():  # it ended just now, or with a TimeoutError of its own
                    return future.result()
                if not self.loop.is_running():
                    raise PoolClosed("the Dask client's event loop has stopped: make a new Client") from None
            except BaseException:
                future.cancel()
                raise

    def check_here(self) -> None:
        """Raise `PoolClosed` in a forked child of the process that made it: there the event loop has no thread."""
        if _forks != self._made_after:
            raise PoolClosed(FORKED)

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `coroutine` on the event loop, from the event loop; nobody has to wait for it."""
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._spawned)
        return task

    def _spawned(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("daskqueue failed in the background of a client", exc_info=task.exception())

    def soon(self, callback: Callable[..., object], *args: Any) -> None:
        """Call `callback` on the client's event loop."""
        self.check_here()
        try:
            self.loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            raise PoolClosed(CLIENT_CLOSED) from None

    async def ask(self, do: str, **message: Any) -> tuple[Any, ...]:
        """Ask the directory; returns its answer. Raises OSError."""
        call = getattr(self.client.scheduler, HANDLER)
        answer = await call(do=do, **message)
        if not isinstance(answer, (list, tuple)):
            raise OSError(f"the scheduler answered {answer!r} to {do}")
        return tuple(answer)

    async def _resolve(self, pool: str, id: str) -> list[Place] | None:
        if not self.alive:
            raise SchedulerGone
        try:
            answer = await self.ask("resolve", pool=pool, id=id)
        except PoolClosed:
            raise SchedulerGone from None
        if answer[0] != OK:
            raise OSError(f"the scheduler answered {answer!r}")
        return None if answer[1] is None else [Place(*place) for place in answer[1]]

    # -- the end

    def watch(self, on_end: Callable[[BaseException], None]) -> None:
        """Call `on_end` on the event loop when the Dask client has given up its scheduler or is closed."""
        self._watchers.add(on_end)

    def unwatch(self, on_end: Callable[[BaseException], None]) -> None:
        """The other end of `watch`."""
        self._watchers.discard(on_end)

    async def _watch(self) -> None:
        why = "the Dask client was closed"
        try:
            while self.alive:  # noqa: ASYNC110  # Dask has no event for it
                await asyncio.sleep(WATCH_S)
        except asyncio.CancelledError:
            why = "the Dask client's event loop was stopped"
        error = PoolClosed(why)
        for on_end in list(self._watchers):
            on_end(error)
        self.callbacks.close()
        await self.connections.close()
