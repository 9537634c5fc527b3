"""`QueuePool`: what a user submits to.

With a synchronous Dask client the calls block as they say. With an asynchronous one, `await QueuePool(client)` opens
the pool, the calls that would block return awaitables, `map` an asynchronous iterator, and `submit` never waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from concurrent.futures import CancelledError
from functools import partial
from types import TracebackType
from typing import Any

from distributed import Client

from daskqueue.client.encoder import BLOCK_CALLS, Calls, encode_calls, item_batch
from daskqueue.client.futures import TaskFuture, task_key
from daskqueue.client.opening import attach_pool, open_pool
from daskqueue.client.options import check_count, pool_options
from daskqueue.client.pieces import Piece
from daskqueue.client.pool_connection import PoolConnection
from daskqueue.client.session import Session, current_client
from daskqueue.client.task_batch import TaskBatch
from daskqueue.client.value_stream import ValueStream
from daskqueue.wire import nested
from daskqueue.wire.calls import encode_args
from daskqueue.wire.functions import Style, encode_function
from daskqueue.wire.operations import OK
from daskqueue_core.batch import Keep
from daskqueue_core.errors import PoolClosed, QueueLost
from daskqueue_core.outcomes import Outcome
from daskqueue_core.stats import QueueStats

__all__ = ["QueuePool"]


KeptPiece = tuple[str, Piece, int]
"""A task's key, its outcome, and its index in that."""


class QueuePool:
    """Queues on the workers of a Dask cluster.

    Parameters
    ----------
    client: the Dask client; default: the current one.
    n_queues: how many queues. One carries millions of tasks a second; more are for more hosts.
    name: None: the pool is this client's, and ends with it. A name: it belongs to the cluster until `shutdown`, and
        constructing it again with equal options, from any client, attaches to it.
    options: see `daskqueue.client.options.POOL_DEFAULTS`; each can be set in `dask.config` under `daskqueue:`.
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

    def _begin(self, session: Session, opening: Callable[[], Coroutine[Any, Any, PoolConnection]]) -> None:
        self._session = session
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

    # -- work

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture:
        """Run `fn(*args, **kwargs)` on a worker. Raises here if it cannot be pickled.

        Calls in a loop travel together by themselves. The result can be read by key until `result_ttl` is over.
        """
        return self._submit(fn, args, kwargs, Keep.KEEP)

    def _submit(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], keep: Keep) -> TaskFuture:
        if not callable(fn):
            raise TypeError(f"submit needs a function to call, not {fn!r}")
        function = encode_function(fn, Style.KWARGS if kwargs else Style.ARGS)
        return self._connection.submitter.submit(function, encode_args(args, kwargs, fn), keep)

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Any:
        """As `concurrent.futures.Executor.map`: `fn` of the items side by side; an iterator of the values, in order.

        `buffersize=None` submits everything at the call; `buffersize=n` keeps at most n tasks submitted and not yet
        yielded, pulled by the caller's `next`. `chunksize` is a hint; tasks travel in batches of up to 1,000 anyhow.
        """
        if buffersize is not None:
            check_count("buffersize", buffersize)
        check_count("chunksize", chunksize)
        calls = Calls(*iterables)
        stream = ValueStream(self._connection)
        submit = None
        if buffersize is None:
            self._send_calls(fn, calls, stream, Keep.STREAM)
        else:

            def submit(limit: int) -> int:
                return self._send_calls(fn, calls, stream, Keep.STREAM, limit=limit)

        values = stream.values_async if self._session.asynchronous else stream.values
        return values(submit, buffersize, timeout)

    def submit_many(self, fn: Callable[..., Any], iterable: Iterable[Any]) -> TaskBatch:
        """Run `fn(item)` for each item; one object for all the tasks. Drains the iterable before it returns.

        An exception of the iterable cancels what was sent and is raised.
        """
        batch = TaskBatch(self._connection)
        self._send_calls(fn, Calls(iterable), batch, Keep.STREAM)
        return batch

    def batch_submit(self, calls: Iterable[Sequence[Any]], batch_size: int = BLOCK_CALLS) -> TaskBatch:
        """Submit calls given as `(fn, arg, ...)` sequences; `batch_size` of them travel together at most."""
        check_count("batch_size", batch_size)
        batch = TaskBatch(self._connection, keeps=True)
        for fn, group in itertools.groupby(map(_checked_call, calls), key=lambda call: call[0]):
            self._send_calls(fn, Calls.of_tuples(tuple(call[1:]) for call in group), batch, Keep.KEEP, batch_size)
        return batch

    def _send_calls(
        self,
        fn: Callable[..., Any],
        calls: Calls,
        sink: TaskBatch | ValueStream,
        keep: Keep,
        most: int = BLOCK_CALLS,
        limit: int | None = None,
    ) -> int:
        """Send all calls; returns how many."""
        if not callable(fn):
            raise TypeError(f"a task needs a function to call, not {fn!r}")
        connection, before = self._connection, len(sink)
        most = min(most, connection.submitter.batch_calls)
        try:
            for batch in encode_calls(fn, calls, client=self._session.id, keep=keep, most=most, limit=limit):
                first = self._session.numbers(batch.count)
                index = sink.extend(batch.count, first)
                connection.submitter.send(batch._replace(first=first), sink, index)
        except BaseException:
            connection.abandon(sink)
            raise
        return len(sink) - before

    def put(self, item: Any, *, block: bool = True, timeout: float | None = None) -> Any:
        """Put an item for a custom consumer; returns once it was accepted. Otherwise as `put_many`."""
        return self.put_many((item,), block=block, timeout=timeout)

    def put_many(self, items: Iterable[Any], *, block: bool = True, timeout: float | None = None) -> Any:
        """Put items for a custom consumer; returns once all were accepted.

        A full queue makes it wait; with `block=False`, after `timeout` seconds, or in a pool with `on_full="raise"` it
        raises `queue.Full` instead. Items travel in batches of up to 1,000: those before the refused one were put.
        """
        batches = list(item_batch(items, most=self._connection.submitter.batch_calls))
        return self._session.sync(self._connection.put(batches, timeout if block else 0.0))

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
        return self._read(keys, partial(_values, raise_on_error=raise_on_error))

    def failures(self, keys: Iterable[str] | None = None) -> Any:
        """Exceptions by key, of `submit` and `batch_submit` tasks that failed."""
        return self._read(keys, _errors)

    def _read(self, keys: Iterable[str] | None, read: Callable[[list[KeptPiece]], dict[str, Any]]) -> Any:
        """Unpickling is other people's code: in the caller's thread, or in one of its own."""
        wanted = None if keys is None else set(keys)
        if self._session.asynchronous:
            return self._read_async(wanted, read)
        return read(_keyed(self._session.run(self._connection.kept()), wanted))

    async def _read_async(
        self, wanted: set[str] | None, read: Callable[[list[KeptPiece]], dict[str, Any]]
    ) -> dict[str, Any]:
        kept = await self._connection.kept()
        return await asyncio.to_thread(lambda: read(_keyed(kept, wanted)))

    # -- the end

    def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> Any:
        """End the pool, for everybody who uses it. Waits for its work first, if a consumer is there to do it.

        `cancel_futures` cancels what has not begun. `wait=False` returns at once; the pool ends when its work is done.
        Calling it again does nothing.
        """
        connection = self._connection
        if connection.error is not None:
            return self._session.sync(_nothing()) if self._session.asynchronous else None
        connection.refuse()
        work = self._shut_down(cancel_futures)
        if wait or not self._session.alive:
            return self._session.sync(work)
        self._session.soon(self._session.spawn, work)
        return self._session.sync(_nothing()) if self._session.asynchronous else None

    async def _shut_down(self, cancel_futures: bool) -> None:
        connection = self._connection
        if self._session.alive:
            if cancel_futures:
                await connection.cancel_everything()
            with contextlib.suppress(QueueLost, PoolClosed, OSError):
                kinds = await self._served()
                if kinds and cancel_futures:
                    await connection.collector.wait_quiet()
                elif kinds:
                    await connection.join(None, kinds)
        connection.close(CancelledError())
        with contextlib.suppress(OSError, PoolClosed):
            await self._session.ask("close", pool=connection.name)

    async def _served(self) -> tuple[int, ...]:
        """The kinds of work that a consumer is there for."""
        answer = await self._session.ask("served", pool=self.name)
        return tuple(answer[1][0]) if answer[0] == OK else ()

    def __enter__(self) -> QueuePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown(wait=kind is None, cancel_futures=kind is not None)

    async def __aenter__(self) -> QueuePool:
        return await self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._shut_down(kind is not None)


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


def _checked_call(call: Sequence[Any]) -> Sequence[Any]:
    if not isinstance(call, (tuple, list)) or not call or not callable(call[0]):
        raise TypeError(f"batch_submit takes (function, argument, ...) tuples, not {call!r}")
    return call


def _keyed(kept: Iterable[tuple[int, Outcome]], wanted: set[str] | None) -> list[KeptPiece]:
    """Kept tasks in order of submission for each client."""
    found: dict[tuple[int, int], tuple[Piece, int]] = {}
    for client, outcome in kept:
        piece = Piece(outcome)
        for lo, hi in outcome.runs:
            for index in range(lo, hi):
                found.setdefault((client, outcome.first + outcome.index + index), (piece, index))
    keyed = ((task_key(client, number), *found[client, number]) for client, number in sorted(found))
    return [entry for entry in keyed if wanted is None or entry[0] in wanted]


def _values(kept: list[KeptPiece], *, raise_on_error: bool) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, piece, index in kept:
        error = piece.error(index)
        if error is None:
            values[key] = piece.value(index)
        elif raise_on_error:
            raise error
    return values


def _errors(kept: list[KeptPiece]) -> dict[str, BaseException]:
    errors = {key: piece.error(index) for key, piece, index in kept}
    return {key: error for key, error in errors.items() if error is not None}
