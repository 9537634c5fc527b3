"""`QueuePool`: what a user submits to.

With a synchronous Dask client the calls block as they say. With an asynchronous one, `await QueuePool(client)` opens
the pool, the calls that would block return awaitables, `map` an asynchronous iterator, and `submit` never waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine, Generator, Iterable
from concurrent.futures import CancelledError
from functools import partial
from types import TracebackType
from typing import Any, Final, Literal, TypeVar

from distributed import Client

from daskqueue.client.administration import check_state
from daskqueue.client.dead_tasks import dead_tasks
from daskqueue.client.finishing import join_served, served_at_last
from daskqueue.client.naming import check_keys
from daskqueue.client.opening import attach_pool, open_pool
from daskqueue.client.options import Durability, check_count, pool_options
from daskqueue.client.pool_connection import PoolConnection
from daskqueue.client.reading import KeptTask, read_errors, read_values
from daskqueue.client.session import Session, current_client
from daskqueue.client.task_door import TaskDoor
from daskqueue.client.task_options import NOTHING
from daskqueue.wire import nested
from daskqueue.wire.recovery import Recovery
from daskqueue_core.errors import DaskQueueError, PoolClosed
from daskqueue_core.states import MessageState
from daskqueue_core.stats import QueueStats

__all__ = ["QueuePool"]

T = TypeVar("T")

LEAVE_S: Final = 4.0  # for what runs, after an exception
CLOSED_S: Final = 2.0


class QueuePool(TaskDoor):
    """Queues on the workers of a Dask cluster.

    Parameters
    ----------
    client: the Dask client; default: the current one.
    n_queues: how many queues. One carries millions of tasks a second; more are for more hosts.
    name: None: the pool is this client's, and ends with it. A name: it belongs to the cluster until `shutdown`, and
        constructing it again with equal options, from any client, attaches to it.
    durability: "durable": its messages, what became of them and the results of `submit` are in the directory
        `dirpath`, which the workers must see, and survive the cluster. Such a pool belongs to the cluster, too; another
        cluster goes on with it (`resume`).
    options: see `daskqueue.client.options.POOL_DEFAULTS`; each can be set in `dask.config` under `daskqueue:`.

    As a context manager it is shut down at the end. After an exception what has not begun is cancelled, what runs is
    waited for, but for `LEAVE_S` seconds at most, and the pool has ended when the block is left.
    """

    def __init__(
        self, client: Client | None = None, n_queues: int = 1, *, name: str | None = None, **options: Any
    ) -> None:
        check_count("n_queues", n_queues)
        plain = pool_options(options)
        if name is not None and (not isinstance(name, str) or not name):  # type: ignore[redundant-expr]
            raise TypeError(f"a pool's name must be a string that is not empty, not {name!r}")
        session = _session(client)
        self._begin(session, partial(open_pool, session, name, n_queues, plain))

    @classmethod
    def attach(cls, client: Client | None, name: str) -> QueuePool:
        """Take part in the pool `name`, which another client made; `KeyError` if there is none."""
        session = _session(client)
        pool = cls.__new__(cls)
        pool._begin(session, partial(attach_pool, session, name))
        return pool

    @classmethod
    def resume(cls, client: Client | None, dirpath: str | os.PathLike[str], **options: Any) -> QueuePool:
        """Go on with the durable pool in `dirpath`; `FileNotFoundError` if there is none. Options as for a new one.

        What nobody has finished is run, also what was under way when its cluster ended; what has ended is not.
        Results that were kept are there (`results`, `get_future`); `recovery()` says what was found.
        """
        plain = pool_options({**options, "durability": Durability.DURABLE, "dirpath": dirpath})
        session = _session(client)
        pool = cls.__new__(cls)
        pool._begin(session, partial(open_pool, session, None, None, plain, create=False))
        return pool

    def _begin(self, session: Session, opening: Callable[[], Coroutine[Any, Any, PoolConnection]]) -> None:
        self._session = session
        self._choice = NOTHING  # each submit reads it: found at once
        self._opening = opening if session.asynchronous else None
        self._opened = None if session.asynchronous else session.run(opening())
        if self._opened is not None and nested.inside_task():
            nested.register(self._opened)

    def __await__(self) -> Generator[Any, None, QueuePool]:
        return self._open().__await__()

    async def _open(self) -> QueuePool:
        if self._opened is None and self._opening is not None:
            opening, self._opening = self._opening, None
            self._opened = await opening()
        return self

    @property
    def _connection(self) -> PoolConnection:
        if self._opened is None:
            raise RuntimeError("with an asynchronous client the pool is opened by awaiting it: await QueuePool(client)")
        return self._opened

    @property
    def name(self) -> str:
        """The pool's name in the cluster."""
        return self._connection.name

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach_here, (self.name,)

    def __repr__(self) -> str:
        if self._opened is None:
            return "<QueuePool, to be awaited>"
        state = "closed" if self._opened.error is not None else "open"
        return f"<QueuePool {self.name} of {len(self)} queue(s), {state}>"

    def __len__(self) -> int:
        return len(self._connection.route)

    def __getitem__(self, index: int) -> QueueStats:
        """What queue `index` says of itself."""
        stats: list[QueueStats] = self.stats()
        return stats[index]

    # -- waiting

    def flush(self) -> Any:
        """Wait until everything submitted so far was accepted by its queue."""
        return self._session.sync(self._flush())

    async def _flush(self) -> None:
        await self._connection.submitter.flush()
        self._connection.check()

    def wait_capacity(self) -> Any:
        """Wait until there is room for more: for asynchronous clients, whose `submit` never waits."""
        return self._session.sync(self._connection.submitter.wait_capacity())

    def join(self, *, timeout: float | None = None) -> Any:
        """Wait until all work of the pool is done, whoever submitted it; failed tasks count as done.

        Raises `TimeoutError` after `timeout` seconds, and `QueueLost` once if items that were put are gone.
        """
        deadline = None if timeout is None else self._session.loop.time() + timeout
        return self._session.sync(self._connection.join(deadline))

    # -- reading

    def stats(self) -> Any:
        """What each queue says of itself: a list of `QueueStats`."""
        return self._session.sync(self._connection.stats())

    def health(self) -> Any:
        """How the pool is, and what is wrong with it: a `PoolHealth`."""
        return self._session.sync(self._connection.checkup.health())

    def recovery(self) -> Any:
        """What opening the directory of a durable pool has found: a `Recovery` for each queue, in words as text."""
        return self._session.sync(self._recovery())

    async def _recovery(self) -> list[Recovery]:
        connection = self._connection
        if connection.options["durability"] != Durability.DURABLE:
            raise TypeError(f"{self!r} is transient: nothing of it was on a disk")
        return [await connection.call(index, "recovery") for index in range(len(connection.route))]

    def get_queue_size(self) -> Any:
        """Messages that wait in each queue, by name."""
        return self._session.sync(self._queue_sizes())

    async def _queue_sizes(self) -> dict[str, int]:
        stats = await self._connection.stats()
        return {f"{self.name}-{index}": queue.ready for index, queue in enumerate(stats)}

    def results(self, keys: Iterable[str] | None = None, *, raise_on_error: bool = False) -> Any:
        """Values by key, in submission order for each client: of `submit` and `batch_submit` tasks that succeeded.

        `raise_on_error`: raise the first failed task's exception instead of leaving it out.
        """
        return self._read(keys, partial(read_values, raise_on_error=raise_on_error))

    def failures(self, keys: Iterable[str] | None = None) -> Any:
        """Exceptions by key, of `submit` and `batch_submit` tasks that failed."""
        return self._read(keys, read_errors)

    def _read(self, keys: Iterable[str] | None, read: Callable[[list[KeptTask]], dict[str, Any]]) -> Any:
        wanted = None if keys is None else check_keys(keys)
        return self._then(self._connection.read_kept(wanted), lambda kept: read(kept.tasks()))

    def get_future(self, key: str) -> Any:
        """The future of the task `key`, whoever submitted it; `KeyError` if nobody knows it.

        It ends with `ResultExpired` if the task has ended and its result is not kept any more. After a `requeue` it is
        that of the new life. A task that this client has submitted and that has not reached its queue is waited for.
        """
        if not isinstance(key, str):
            raise TypeError(f"a key must be a string, not {key!r}")
        return self._session.sync(self._connection.finder.find(key))

    # -- control

    def cancel(self, keys: Iterable[str]) -> Any:
        """Cancel tasks by key, whoever submitted them. Returns how many have ended by it; what runs is asked to stop.

        Keys that nobody knows are left out, here and in the calls below.
        """
        return self._session.sync(self._connection.canceller.cancel_keys(check_keys(keys)))

    def forget(self, keys: Iterable[str]) -> Any:
        """Drop kept results, and what is known of cancelled and expired tasks. Returns how many."""
        return self._session.sync(self._connection.administration.forget(check_keys(keys)))

    def dead_letters(self, limit: int | None = None) -> Any:
        """Tasks and items that failed for good: a list of `DeadTask`, `limit` at most. They stay until requeued,
        purged, or submitted again under their key."""
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):  # type: ignore[redundant-expr]
            raise ValueError(f"limit must be a whole number that is not negative, or None for all, not {limit!r}")
        return self._then(self._connection.administration.dead_letters(limit), dead_tasks)

    def requeue(self, keys: Iterable[str] | Literal["all"]) -> Any:
        """Run dead letters again, or "all" of them, each in a new life: without the attempts it has had.

        Returns how many. Futures of the old life keep their outcome; `get_future` gives the new one.
        """
        names = None if isinstance(keys, str) and keys == "all" else check_keys(keys)
        return self._session.sync(self._connection.administration.requeue(names))

    def purge(self, state: MessageState | str) -> Any:
        """Drop everything in `state`, a `MessageState` or its name, such as "failed" or "ready". Returns how many.

        What has not begun ends as cancelled; what runs cannot be purged.
        """
        return self._session.sync(self._connection.administration.purge(check_state(state)))

    def _then(self, asking: Coroutine[Any, Any, T], read: Callable[[T], Any]) -> Any:
        """What `read` makes of an answer. Unpickling is other people's code: in the caller's thread, or one apart."""
        if self._session.asynchronous:
            return _read_apart(asking, read)
        return read(self._session.run(asking))

    # -- the end

    def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> Any:
        """End the pool, for everybody who uses it. Waits for its work first, if a consumer is there to do it.

        `cancel_futures` cancels what has not begun. `wait=False` returns at once; the pool ends when its work is done.
        Calling it again does nothing.
        """
        if not self._connection.begin_end():
            return self._session.sync(_nothing()) if self._session.asynchronous else None
        work = self._shut_down(cancel_futures)
        if wait or not self._session.alive:
            return self._session.sync(work)
        self._session.soon(self._session.spawn, work)
        return self._session.sync(_nothing()) if self._session.asynchronous else None

    async def _shut_down(self, cancel_futures: bool) -> None:
        await self._finish(cancel_futures)
        await self._close()

    async def _finish(self, cancel_futures: bool, *, wait: bool = True) -> None:
        """Wait for the work, if a consumer is there to do it; without `wait` only cancel."""
        connection = self._connection
        if connection.error is not None or not self._session.alive:
            return
        if cancel_futures:
            await connection.canceller.cancel_everything()
        if not wait:
            return
        with contextlib.suppress(DaskQueueError, OSError):
            if not cancel_futures:
                await join_served(connection)
            elif (await served_at_last(connection)).kinds:
                await connection.collector.wait_quiet()

    async def _close(self) -> None:
        connection = self._connection
        connection.close(CancelledError())
        with contextlib.suppress(OSError, PoolClosed):
            await self._session.ask("close", pool=connection.name, id=connection.route.id)
            connection.left_open = False

    def _leave(self, *, wait: bool = True) -> None:
        """End the pool after an exception: cancel what has not begun, and `wait` for what runs, but not for long.

        It ends before this returns, since the Dask client may end next, and then nobody could end it.
        """
        if self._session.on_loop:
            self.shutdown(wait=False, cancel_futures=True)
        else:
            with contextlib.suppress(PoolClosed):  # with its client, and that exception matters more
                self._session.run(self._leave_async(wait=wait))

    async def _leave_async(self, *, wait: bool = True) -> None:
        if self._connection.begin_end():
            with contextlib.suppress(asyncio.TimeoutError, DaskQueueError, OSError):
                await asyncio.wait_for(self._finish(cancel_futures=True, wait=wait), LEAVE_S)
            await asyncio.wait([self._session.spawn(self._close())], timeout=CLOSED_S)

    def __enter__(self) -> QueuePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.shutdown()
        else:
            self._leave()

    async def __aenter__(self) -> QueuePool:
        return await self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            await self._leave_async()
        elif self._connection.begin_end():
            await self._shut_down(cancel_futures=False)


async def _read_apart(asking: Coroutine[Any, Any, T], read: Callable[[T], Any]) -> Any:
    answer = await asking
    return await asyncio.to_thread(read, answer)


async def _nothing() -> None:
    """What there is to await of a call that had nothing to do."""


def _session(client: Client | None) -> Session:
    if client is None:
        client = current_client()
    if not isinstance(client, Client):
        raise TypeError(f"a QueuePool works with a dask.distributed.Client, not {client!r}")
    return Session.of(client)


def _attach_here(name: str) -> QueuePool:
    """A pool that travelled with a task: one connection serves all that come to this process."""
    session = _session(None)
    pool = QueuePool.__new__(QueuePool)
    pool._begin(session, partial(attach_pool, session, name, known=True))
    return pool
