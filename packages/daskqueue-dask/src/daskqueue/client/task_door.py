"""The calls that bring work into a pool: those of a `QueuePool`, and of the views that its `options` return.

With an asynchronous client the calls that would block return awaitables, `map` an asynchronous iterator, and `submit`
never waits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from daskqueue.client.encoder import BLOCK_CALLS, SMALL_CALLS, Calls, encode_calls, item_batch
from daskqueue.client.futures import TaskFuture
from daskqueue.client.options import check_count
from daskqueue.client.pool_connection import PoolConnection
from daskqueue.client.session import Session
from daskqueue.client.task_batch import TaskBatch
from daskqueue.client.task_options import NOTHING, Choice, TaskOptions, Terms, choose, terms_of
from daskqueue.client.value_stream import ValueStream
from daskqueue.wire.calls import encode_args
from daskqueue.wire.functions import Style, encode_function
from daskqueue_core.batch import Batch, Keep

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["PoolView", "TaskDoor"]


class TaskDoor:
    """Takes work for a pool, under options that were chosen before."""

    _session: Session
    _choice: Choice = NOTHING

    @property
    def _connection(self) -> PoolConnection:
        raise NotImplementedError

    def options(self, **options: Unpack[TaskOptions]) -> PoolView:
        """The same calls with options for the tasks that they bring: `pool.options(priority=5).submit(fn, x)`.

        Parameters
        ----------
        key: names the task, for one `submit` or `put`; see `on_duplicate`
        on_duplicate: what happens when a task of that key is unfinished or its result is kept. "return": its outcome
            becomes this future's, "raise": this one ends with DuplicateKey, "replace": the other one makes way
        priority: higher first, from -32768 to 32767
        delay, eta: not begun before: seconds from the call on, or a datetime (without time zone: local time) or
            seconds since the epoch
        expires: if not begun by then, it ends with TaskExpired: seconds from the call on (rounded up to 10 ms), or a
            datetime
        timeout: seconds that an attempt may take
        retry: a RetryPolicy; default: that of the pool, then that of the consumers
        tags: only consumers that have all of these take it
        time_request: only consumers whose job does not end sooner take it: seconds, a timedelta, or text such as
            "20m"; see `ConsumerPool(walltime=)`
        store_result: False: its future ends with None, and nothing is kept

        Options of a view of a view are added; None takes one back. A wrong option or value raises here.
        """
        return PoolView(self, choose(options, self._choice))

    # -- calls

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture:
        """Run `fn(*args, **kwargs)` on a worker. Raises here if it cannot be pickled.

        Calls in a loop travel together by themselves. The result can be read by key until `result_ttl` is over.
        """
        return self._submit(fn, args, kwargs, Keep.KEEP)

    def _submit(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], keep: Keep) -> TaskFuture:
        if not callable(fn):
            raise TypeError(f"submit needs a function to call, not {fn!r}")
        function = encode_function(fn, Style.KWARGS if kwargs else Style.ARGS)
        body = encode_args(args, kwargs, fn)
        choice = self._choice
        if choice is NOTHING:
            connection = self._connection
            return connection.submitter.submit(function, body, connection.plain[keep])
        submitter = self._connection.submitter
        return submitter.submit(function, body, self._terms(keep), choice.ready_at(), choice.key)

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
        yielded, pulled by the caller's `next`. `chunksize` is a hint; tasks travel in batches of up to 4,000 anyhow.
        """
        if buffersize is not None:
            check_count("buffersize", buffersize)
        check_count("chunksize", chunksize)
        self._for_many("map")
        if not self._choice.store_result:
            raise TypeError("map with store_result=False would yield nothing but None: use submit_many")
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

    def submit_many(self, fn: Callable[..., Any], iterable: Iterable[Any], *, store_result: bool = True) -> TaskBatch:
        """Run `fn(item)` for each item; one object for all the tasks. Drains the iterable before it returns.

        An exception of the iterable cancels what was sent and is raised. `store_result=False`: nobody reads the values.
        """
        if not store_result:
            return self.options(store_result=False).submit_many(fn, iterable)
        self._for_many("submit_many")
        batch = TaskBatch(self._connection, discard=not self._choice.store_result)
        self._send_calls(fn, Calls(iterable), batch, Keep.STREAM)
        return batch

    def batch_submit(self, calls: Iterable[Sequence[Any]], batch_size: int = BLOCK_CALLS) -> TaskBatch:
        """Submit calls given as `(fn, arg, ...)` sequences; `batch_size` of them travel together at most."""
        check_count("batch_size", batch_size)
        self._for_many("batch_submit")
        stored = self._choice.store_result
        batch = TaskBatch(self._connection, keeps=stored, discard=not stored)
        for fn, group in itertools.groupby(map(_checked_call, calls), key=lambda call: call[0]):
            self._send_calls(fn, Calls.of_tuples(tuple(call[1:]) for call in group), batch, Keep.KEEP, batch_size)
        return batch

    def _send_calls(
        self,
        fn: Callable[..., Any],
        calls: Calls,
        sink: TaskBatch | ValueStream,
        keep: Keep,
        most: int = SMALL_CALLS,
        limit: int | None = None,
    ) -> int:
        """Send all calls; returns how many."""
        if not callable(fn):
            raise TypeError(f"a task needs a function to call, not {fn!r}")
        connection, before = self._connection, len(sink)
        most = min(most, connection.submitter.put_calls)
        terms, ready_at = self._terms(keep), self._choice.ready_at()
        try:
            for batch in encode_calls(fn, calls, client=self._session.id, keep=keep, most=most, limit=limit):
                first = self._session.numbers(batch.count)
                index = sink.extend(batch.count, first)
                connection.submitter.send(terms.on(batch)._replace(first=first, ready_at=ready_at), sink, index)
        except BaseException:
            connection.abandon(sink)
            raise
        return len(sink) - before

    # -- items

    def put(self, item: Any, *, block: bool = True, timeout: float | None = None) -> Any:
        """Put an item for a custom consumer; returns once it was accepted. Otherwise as `put_many`.

        With a key that is in use it is not put, and `on_duplicate="raise"` raises `DuplicateKey`.
        """
        batches = self._items((item,))
        if self._choice.key is None:
            return self._session.sync(self._connection.put(batches, timeout if block else 0.0))
        keyed = batches[0]._replace(keys=(self._choice.key,))
        return self._session.sync(self._connection.put_keyed(keyed, timeout if block else 0.0))

    def put_many(self, items: Iterable[Any], *, block: bool = True, timeout: float | None = None) -> Any:
        """Put items for a custom consumer; returns once all were accepted.

        A full queue makes it wait; with `block=False`, after `timeout` seconds, or in a pool with `on_full="raise"` it
        raises `queue.Full` instead (or `DiskFullError`). Items travel in batches of up to 1,000: those before the
        refused one were put.
        """
        self._for_many("put_many")
        return self._session.sync(self._connection.put(self._items(items), timeout if block else 0.0))

    def _items(self, items: Iterable[Any]) -> list[Batch]:
        terms, ready_at = self._terms(Keep.NONE), self._choice.ready_at()
        most = min(BLOCK_CALLS, self._connection.submitter.put_calls)
        return [terms.on(batch)._replace(ready_at=ready_at) for batch in item_batch(items, most=most)]

    # -- options

    def _terms(self, keep: Keep) -> Terms:
        if self._choice is NOTHING:
            return self._connection.plain[keep]
        connection = self._connection
        return terms_of(self._choice, keep, connection.plain[keep], connection.retry)

    def _for_many(self, call: str) -> None:
        if self._choice.key is not None:
            raise TypeError(f"key={self._choice.key!r} names one task, and {call} brings many: use submit or put")


class PoolView(TaskDoor):
    """A pool with options for the tasks that it brings; what `QueuePool.options` returns.

    `stream`: results of `submit` stream back and are not kept for other readers, as those of a `QueueExecutor`.
    """

    def __init__(self, door: TaskDoor, choice: Choice, *, stream: bool = False) -> None:
        self._door: TaskDoor = door._door if isinstance(door, PoolView) else door
        self._stream: bool = door._stream if isinstance(door, PoolView) else stream
        self._choice = choice
        self._session = door._session

    @property
    def _connection(self) -> PoolConnection:
        return self._door._connection

    def __repr__(self) -> str:
        chosen = ", ".join(f"{name}={value!r}" for name, value in self._choice.given.items())
        return f"<PoolView of {self._door!r}: {chosen}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(PoolView, stream=self._stream), (self._door, self._choice)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture:
        """As `QueuePool.submit`, with these options."""
        return self._submit(fn, args, kwargs, Keep.STREAM if self._stream else Keep.KEEP)


def _checked_call(call: Sequence[Any]) -> Sequence[Any]:
    if not isinstance(call, (tuple, list)) or not call or not callable(call[0]):
        raise TypeError(f"batch_submit takes (function, argument, ...) tuples, not {call!r}")
    return call
