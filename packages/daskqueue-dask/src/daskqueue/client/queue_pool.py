"""`QueuePool`: what a user submits to."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, Final

from distributed import Client, get_client

from daskqueue.client.encoder import encode_calls, item_batch
from daskqueue.client.futures import Piece, TaskBatch, TaskFuture, task_key
from daskqueue.client.install import install
from daskqueue.client.options import check_count, pool_options
from daskqueue.client.pool_connection import PoolConnection
from daskqueue.client.session import Session
from daskqueue.wire.calls import encode_args
from daskqueue.wire.functions import Style, encode_function
from daskqueue.wire.link import Route
from daskqueue.wire.operations import OK, PROTOCOL
from daskqueue_core.batch import Keep
from daskqueue_core.directory import Place
from daskqueue_core.errors import DaskQueueError, NotInstalled, PoolClosed, PoolExists, QueueLost
from daskqueue_core.stats import QueueStats

__all__ = ["QueuePool"]

MAP_CHUNK: Final = 1000


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
        own_name = name if name is not None else f"unnamed-{uuid.uuid4().hex}"
        answer = session.run(
            session.ask(
                "open",
                name=own_name,
                options=plain,
                n_queues=n_queues,
                client=session.client_id,
                owned=name is None,
                protocol=PROTOCOL,
            )
        )
        _raise_refusal(answer, own_name)
        self._connect(session, own_name, answer[1], plain)

    @classmethod
    def attach(cls, client: Client | None, name: str) -> QueuePool:
        """Take part in the pool `name`, which another client made; `KeyError` if there is none."""
        session = _session(client)
        answer = session.run(session.ask("attach", name=name, client=session.client_id, protocol=PROTOCOL))
        _raise_refusal(answer, name)
        if answer[1] is None:
            raise KeyError(f"there is no pool {name!r} in this cluster; QueuePool(client, name={name!r}) makes it")
        options, places = answer[1]
        pool = cls.__new__(cls)
        pool._connect(session, name, places, options)
        return pool

    def _connect(self, session: Session, name: str, places: Iterable[Sequence[Any]], options: Any) -> None:
        self.name = name
        self._session = session
        route = Route(name, [Place(*place) for place in places])

        async def connect() -> PoolConnection:
            connection = PoolConnection(session, name, route, dict(options))
            connection.start()
            return connection

        self._connection = session.run(connect())
        self._submit = self._connection.submitter.submit

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach_here, (self.name,)

    def __repr__(self) -> str:
        state = "closed" if self._connection.error is not None else "open"
        return f"<QueuePool {self.name} of {len(self)} queue(s), {state}>"

    def __len__(self) -> int:
        return len(self._connection.route)

    def __getitem__(self, index: int) -> QueueStats:
        """What queue `index` says of itself."""
        return self.stats()[index]

    # -- work

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture:
        """Run `fn(*args, **kwargs)` on a worker. Raises here if it cannot be pickled.

        Calls in a loop travel together by themselves. The result can be read by key until `result_ttl` is over.
        """
        if not callable(fn):
            raise TypeError(f"submit needs a function to call, not {fn!r}")
        function = encode_function(fn, Style.KWARGS if kwargs else Style.ARGS)
        return self._submit(function, encode_args(args, kwargs, fn))

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """As `concurrent.futures.Executor.map`: `fn` of the items side by side, values in order.

        `buffersize=None` submits everything at the call; `buffersize=n` keeps at most n tasks submitted and not yet
        yielded, pulled by the caller's `next`. `chunksize` is a hint; tasks travel in batches of up to 1,000 anyhow.
        """
        if buffersize is not None:
            check_count("buffersize", buffersize)
        check_count("chunksize", chunksize)
        elements = zip(*iterables)
        batch = TaskBatch(self._session.id, self._session.callbacks)
        if buffersize is None:
            self._send_calls(fn, elements, batch, Keep.STREAM)
            return batch.stream(timeout=timeout)
        return self._map_buffered(fn, elements, batch, buffersize, timeout)

    def _map_buffered(
        self, fn: Callable[..., Any], elements: Iterator[tuple[Any, ...]], batch: TaskBatch, size: int, timeout: Any
    ) -> Iterator[Any]:
        step = max(1, min(MAP_CHUNK, size // 4))
        given = 0
        values = batch.stream(timeout=timeout)
        while True:
            while len(batch) - given + step <= max(size, step):
                before = len(batch)
                self._send_calls(fn, itertools.islice(elements, step), batch, Keep.STREAM)
                if len(batch) == before:
                    yield from values
                    return
            yield next(values)
            given += 1

    def submit_many(self, fn: Callable[..., Any], iterable: Iterable[Any]) -> TaskBatch:
        """Run `fn(item)` for each item; one object for all the tasks. Drains the iterable before it returns."""
        batch = TaskBatch(self._session.id, self._session.callbacks)
        self._send_calls(fn, zip(iterable), batch, Keep.STREAM)
        return batch

    def batch_submit(self, calls: Iterable[Sequence[Any]], batch_size: int = MAP_CHUNK) -> TaskBatch:
        """Submit calls given as `(fn, arg, ...)` sequences; `batch_size` of them travel together at most."""
        check_count("batch_size", batch_size)
        batch = TaskBatch(self._session.id, self._session.callbacks, keeps=True)
        for fn, group in itertools.groupby(map(_checked_call, calls), key=lambda call: call[0]):
            self._send_calls(fn, (tuple(call[1:]) for call in group), batch, Keep.KEEP, batch_size)
        return batch

    def _send_calls(
        self,
        fn: Callable[..., Any],
        elements: Iterator[tuple[Any, ...]],
        batch: TaskBatch,
        keep: Keep,
        most: int = MAP_CHUNK,
    ) -> None:
        if not callable(fn):
            raise TypeError(f"a task needs a function to call, not {fn!r}")
        session = self._session
        for message in encode_calls(fn, elements, client=session.id, keep=keep, most=most):
            first = session.numbers(message.count)
            index = batch.extend(message.count, first)
            self._connection.submitter.send(message._replace(first=first), batch, index)

    def put(self, item: Any, *, block: bool = True, timeout: float | None = None) -> None:
        """Put an item for a custom consumer; returns once it was accepted. `TimeoutError` after `timeout` seconds."""
        self.put_many((item,), block=block, timeout=timeout)

    def put_many(self, items: Iterable[Any], *, block: bool = True, timeout: float | None = None) -> None:
        """Put items for a custom consumer; returns once all were accepted.

        `block=False` is for a queue that is full; a queue without `maxsize` is never full.
        """
        batches = list(item_batch(items))
        self._session.run(self._put(batches, timeout))

    async def _put(self, batches: list[Any], timeout: float | None) -> None:
        self._connection.check()
        work = asyncio.gather(*(self._connection.submitter.send_and_wait(batch) for batch in batches))
        try:
            await asyncio.wait_for(work, timeout)
        except asyncio.TimeoutError:
            raise TimeoutError(f"pool {self.name} did not accept the items within {timeout} s") from None

    def flush(self) -> None:
        """Wait until everything submitted so far was accepted by its queue."""
        self._session.run(self._connection.submitter.flush())
        self._connection.check()

    def join(self, *, timeout: float | None = None) -> None:
        """Wait until all work of the pool is done, whoever submitted it; failed tasks count as done.

        Raises `TimeoutError` after `timeout` seconds, and `QueueLost` once if items that were put are gone.
        """
        deadline = None if timeout is None else self._session.loop.time() + timeout
        self._session.run(self._connection.join(deadline))

    # -- reading

    def stats(self) -> list[QueueStats]:
        """What each queue says of itself."""
        return self._session.run(self._stats())

    async def _stats(self) -> list[QueueStats]:
        return list(await asyncio.gather(*(self._connection.call(i, "stats") for i in range(len(self)))))

    def get_queue_size(self) -> dict[str, int]:
        """Messages that wait in each queue."""
        return {f"{self.name}-{index}": stats.ready for index, stats in enumerate(self.stats())}

    def results(self, keys: Iterable[str] | None = None, *, raise_on_error: bool = False) -> dict[str, Any]:
        """Values by key, in submission order for each client: of `submit` and `batch_submit` tasks that succeeded.

        `raise_on_error`: raise the first failed task's exception instead of leaving it out.
        """
        values: dict[str, Any] = {}
        for key, piece, index in self._kept(keys):
            if not piece.failed(index):
                values[key] = piece.value(index)
            elif raise_on_error:
                error = piece.error(index)
                assert error is not None
                raise error
        return values

    def failures(self, keys: Iterable[str] | None = None) -> dict[str, BaseException]:
        """Exceptions by key, of `submit` and `batch_submit` tasks that failed."""
        errors: dict[str, BaseException] = {}
        for key, piece, index in self._kept(keys):
            error = piece.error(index)
            if error is not None:
                errors[key] = error
        return errors

    def _kept(self, keys: Iterable[str] | None) -> list[tuple[str, Piece, int]]:
        wanted = None if keys is None else set(keys)
        found: dict[tuple[int, int], tuple[Piece, int]] = {}
        for client, outcome in self._session.run(self._connection.kept()):
            piece = Piece(outcome)
            for lo, hi in outcome.runs:
                for index in range(lo, hi):
                    found.setdefault((client, outcome.first + outcome.index + index), (piece, index))
        keyed = ((task_key(client, number), *found[client, number]) for client, number in sorted(found))
        return [entry for entry in keyed if wanted is None or entry[0] in wanted]

    # -- the end

    def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> None:
        """End the pool, for everybody who uses it. Waits for its work first, if a consumer is there to do it.

        `cancel_futures`: what is unfinished ends with `CancelledError` instead. `wait=False` returns at once, and the
        pool ends when its work is done. Calling it again does nothing.
        """
        connection = self._connection
        if connection.error is not None:
            return
        connection.submitter.refuse(PoolClosed(f"pool {self.name} was shut down: make a new one"))
        if not self._session.alive:
            self._session.run(self._close())
        elif wait or cancel_futures:
            self._session.run(self._shut_down(cancel_futures))
        else:
            self._session.soon(lambda: self._session.spawn(self._shut_down(False)))

    async def _shut_down(self, cancel_futures: bool) -> None:
        if not cancel_futures and await self._served():
            with contextlib.suppress(QueueLost):
                await self._connection.join(None)
        await self._close()

    async def _close(self) -> None:
        self._connection.close(CancelledError())
        with contextlib.suppress(OSError, PoolClosed):
            await self._session.ask("close", pool=self.name)

    async def _served(self) -> bool:
        answer = await self._session.ask("served", pool=self.name)
        return answer[0] == OK and bool(answer[1][0])

    def __enter__(self) -> QueuePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown(cancel_futures=kind is not None)


def _session(client: Client | None) -> Session:
    if client is None:
        try:
            client = get_client()
        except ValueError:
            raise ValueError("there is no Dask client: make one first, or pass it") from None
    if not isinstance(client, Client):
        raise TypeError(f"a QueuePool works with a dask.distributed.Client, not {client!r}")
    if client.asynchronous:
        raise NotImplementedError("asynchronous Dask clients are not supported yet: use a synchronous Client")
    session = Session.of(client)
    install(client)
    return session


def _attach_here(name: str) -> QueuePool:
    return QueuePool.attach(None, name)


def _checked_call(call: Sequence[Any]) -> Sequence[Any]:
    if not isinstance(call, (tuple, list)) or not call or not callable(call[0]):
        raise TypeError(f"batch_submit takes (function, argument, ...) tuples, not {call!r}")
    return call


def _raise_refusal(answer: Sequence[Any], name: str) -> None:
    if answer[0] == OK:
        return
    kind, detail = answer[1], answer[2]
    if kind == "PoolExists":
        raise PoolExists(name, {option: tuple(pair) for option, pair in _pairs(detail)})
    if kind == "NotInstalled":
        raise NotInstalled(detail)
    raise DaskQueueError(f"the scheduler refused pool {name!r}: {kind}: {detail}")


def _pairs(detail: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    return detail.items()
